package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
)

func TestEmptyWorks(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing\n", "---\n"} {
		s, err := ParseServer("x", []byte(text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if s.Listen != "127.0.0.1:8400" || s.Limits.RequestBytes != 1<<20 || s.Timeouts.Read != 10*time.Second || s.Limits.UnprovedAttempts != (Rate{20, 200}) {
			t.Fatalf("%q: %+v", text, s)
		}
		if _, err := ParseAgent("x", []byte(text), attest.Methods{{Name: "join-token"}}); err != nil {
			t.Fatal(err)
		}
	}
	var zero Server
	zero.SetDefaults()
	if err := zero.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestEverything(t *testing.T) {
	s, err := ParseServer("x", []byte(`
data: /srv/bailment
environments: [payments-dev, payments]
listen: "[::]:8400"
ops_listen: none
server_id: a-1
root_holders:
  payments-dev: {kind: file, location: /etc/bailment/root.key}
limits:
  request_bytes: 65536
  bundle_bytes: 2MiB
  source_requests: 0.5/s 10
  queue: 7
timeouts: {read: 2s, read_header: 1s}
log: {level: debug, format: json}
notify: {mail: [/usr/sbin/sendmail, -t, -i], from: bailment@example.org, allow: [10.1.2.0/24, "fd00::/8"], timeout: 3s}
`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Limits.RequestBytes != 65536 || s.Limits.BundleBytes != 2<<20 || s.Limits.SourceRequests != (Rate{0.5, 10}) || s.Limits.Queue != 7 ||
		s.RootHolders["payments-dev"].Location != "/etc/bailment/root.key" || s.Log.Format != "json" || s.Timeouts.Read != 2*time.Second ||
		len(s.Notify.Mail) != 3 || s.Notify.From != "bailment@example.org" || len(s.Notify.Networks()) != 2 || s.Notify.Timeout != 3*time.Second ||
		!reflect.DeepEqual(s.Environments, []string{"payments-dev", "payments"}) {
		t.Fatalf("%+v", s)
	}
}

// Each finding has its place, and all are given at once.
func TestFindings(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		{"lisen: x", "f.yaml:1:1: lisen: there is no such field: did you mean \"listen\"?"},
		{"zzz: x", "f.yaml:1:1: zzz: there is no such field"},
		{"limits:\n  queue: 0", "f.yaml:2:10: limits.queue: is less than 1"},
		{"limits:\n  queue: many", "f.yaml:2:10: limits.queue: is not a whole number"},
		{"limits:\n  queue: 999999", "f.yaml:2:10: limits.queue: is more than 65536"},
		{"limits:\n  request_bytes: 1 MB", "f.yaml:2:18: limits.request_bytes: is not a size such as 4096, 64KiB or 1MiB"},
		{"limits:\n  request_bytes: 1", "f.yaml:2:18: limits.request_bytes: is less than 4KiB"},
		{"limits:\n  request_bytes: 9223372036854775807GiB", "f.yaml:2:18: limits.request_bytes: is not a size"},
		{"limits:\n  source_requests: 5", "f.yaml:2:20: limits.source_requests: is not a rate"},
		{"limits:\n  source_requests: NaN/s 5", "f.yaml:2:20: limits.source_requests: is not a rate"},
		{"timeouts: {read: 10}", "f.yaml:1:18: timeouts.read: is not a duration such as 10s or 5m"},
		{"notify: {mail: [sendmail, -t]}", "f.yaml:1:17: notify.mail[0]: \"sendmail\" is not an absolute path"},
		{"notify: {from: \"Ops <ops@example.org>\"}", "notify.from: \"Ops <ops@example.org>\" is not an address"},
		{"notify: {from: \"a@b\\nBcc: c@d\"}", "notify.from:"},
		{"notify: {allow: [10.1.2.3]}", "f.yaml:1:18: notify.allow[0]: \"10.1.2.3\" is not a network"},
		{"notify: {allow: [10.1.2.3/24]}", "f.yaml:1:18: notify.allow[0]: \"10.1.2.3/24\" has bits behind its mask: did you mean 10.1.2.0/24?"},
		{"notify: {timeout: 2m}", "notify.timeout: is more than 1m"},
		{"log: {level: loud}", "f.yaml:1:14: log.level: is not one of debug, info, warn, error"},
		{"log: loud", "f.yaml:1:6: log: is not a mapping"},
		{"data: [a]", "f.yaml:1:7: data: is not a single value"},
		{"data:", "data: has no value"},
		{"environments: x", "f.yaml:1:15: environments: is not a list"},
		{"environments: [UPPER]", "f.yaml:1:16: environments[0]: \"UPPER\" is not the name"},
		{"environments: [a, a]", "f.yaml:1:19: environments[1]: a stands here twice"},
		{"listen: here", "f.yaml:1:1: listen: \"here\" is not HOST:PORT"},
		{"ops_listen: 0.0.0.0:8401", "f.yaml:1:1: ops_listen: \"0.0.0.0:8401\" is not a loopback address"},
		{"ops_listen: localhost:8401", "is not a loopback address"},
		{"root_holders: {a: {kind: tpm}}", "f.yaml:1:26: root_holders.a.kind: is not one of file"},
		{"root_holders: {a: {location: here}}", "f.yaml:1:20: root_holders.a.location: \"here\" is not an absolute path"},
		{"server_id: a/b", "f.yaml:1:1: server_id:"},
		{"data: a\ndata: b", "f.yaml:2:1:"},
		{"data: &a x", "anchors, aliases and tags are not taken"},
		{"limits: {request_memory: 1MiB}", "limits.request_memory: 1MiB has no room for one bundle of 12MiB"},
		{"data: a\n---\ndata: b", "there is a second document"},
		{"data: \"a", "f.yaml:1:"},
		{"proxy_protocol: [10.0.0.1]", "f.yaml:1:1: proxy_protocol: there is no such field"},
		{"\xff", "f.yaml: the file is not UTF-8"},
		{strings.Repeat("#", maxFile+1), "f.yaml: the file is larger than 64 KiB"},
	} {
		_, err := ParseServer("f.yaml", []byte(x.text))
		if err == nil || !strings.Contains(err.Error(), x.want) || problem.KindOf(err) != problem.Invalid {
			t.Errorf("%.40q:\n got %v\nwant %s", x.text, err, x.want)
		}
	}
	_, err := ParseServer("f.yaml", []byte("a: 1\nb: 2\nlimits:\n  c: 3\n"))
	if err == nil || strings.Count(err.Error(), "\nf.yaml:") < 2 || !strings.Contains(err.Error(), "3 findings") {
		t.Errorf("not all at once: %v", err)
	}
}

// two are methods of an agent.
var two = attest.Methods{
	{Name: "join-token", Needs: []attest.Need{{Name: "token", Doc: "from an operator"}}},
	{Name: "x509", Needs: []attest.Need{{Name: "certificate", Doc: "in PEM"}, {Name: "key", Doc: "in PEM"}, {Name: "chain", Optional: true}}},
}

func TestWorkloadSocket(t *testing.T) {
	const token = "attest: {files: {token: /t}}\n"
	for text, want := range map[string]string{
		token:                                                 "/run/bailment/spiffe.sock",
		token + "socket: /a/b":                                "/a/spiffe.sock",
		token + "workload_api: /x/y":                          "/x/y",
		token + "workload_api: none":                          "",
		token + "socket: /a/spiffe.sock":                      "f.yaml: workload_api: is the same path as socket's",
		token + "workload_api: s.sock":                        "f.yaml:2:1: workload_api: \"s.sock\" is not an absolute path",
		token + "workload_api: /" + strings.Repeat("s", 107):  "f.yaml:2:1: workload_api: has 108 bytes",
		token + "socket: /" + strings.Repeat("s", 104) + "/a": "f.yaml: workload_api: would be a path of 117 bytes",
	} {
		a, err := ParseAgent("f.yaml", []byte(text), two)
		if err != nil {
			if !strings.Contains(err.Error(), want) || want == "" {
				t.Errorf("%q: got %v, want %q", text, err, want)
			}
		} else if got := a.WorkloadSocket(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestAgentFindings(t *testing.T) {
	const token = "attest: {files: {token: /t}}\n"
	for text, want := range map[string]string{
		"bootstrap: bailment1:x":                             "f.yaml:1:1: bootstrap: is not a bootstrap string",
		"socket: agent.sock":                                 "f.yaml:1:1: socket: \"agent.sock\" is not an absolute path",
		"attest: {files: {token: here}}":                     "attest.files.token: \"here\" is not an absolute path",
		"ops_listen: 127.0.0.1:8402":                         "f.yaml:1:1: ops_listen: there is no such field",
		"timeout: 30s":                                       "f.yaml:1:1: timeout: there is no such field",
		"attest: {files: {token: /a, token: b}}":             "f.yaml:1:",
		token + "data: agent":                                "f.yaml:2:1: data: \"agent\" is not an absolute path",
		token + "socket: /" + strings.Repeat("s", 107):       "f.yaml:2:1: socket: has 108 bytes, and the kernel takes at most 107",
		"attest: {key: tpm, files: {token: /t}}":             "f.yaml:1:10: attest.key: join-token makes no keys in hardware",
		"attest: {key: chip, files: {token: /t}}":            "f.yaml:1:15: attest.key: is not one of software, tpm",
		"attest: {method: join_token, files: {token: /t}}":   "f.yaml:1:10: attest.method: there is no method \"join_token\" here, but join-token, x509: did you mean \"join-token\"?",
		"attest: {files: {tokn: /t}}":                        "attest.files.tokn: join-token has no use for it; it takes token: did you mean \"token\"?",
		"data: /d":                                           "attest.files: join-token needs a file for token: from an operator",
		"attest: {method: x509, files: {certificate: /c}}":   "attest.files: x509 needs a file for key: in PEM",
		"attest: {method: x509, files: {key: k, token: /t}}": "3 findings",
	} {
		if _, err := ParseAgent("f.yaml", []byte(text), two); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{token, token + "socket: /" + strings.Repeat("s", 106), "attest: {method: x509, files: {certificate: /c, key: /k}}"} {
		a, err := ParseAgent("f.yaml", []byte(text), two)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if err := a.Validate(two); err != nil {
			t.Errorf("%q: loaded, and not valid: %v", text, err)
		}
	}
}

// What is found out about processes, and from which kubelet.
func TestWorkloadFindings(t *testing.T) {
	const token = "attest: {files: {token: /t}}\n"
	for text, want := range map[string]string{
		token + "workloads: {parents: 9}":                                        "f.yaml:2:22: workloads.parents: is more than 8",
		token + "kubelet: {node_name: a}":                                        "kubelet.address: is missing",
		token + "kubelet: {address: 127.0.0.1:10250}":                            "f.yaml:2:11: kubelet.address: \"127.0.0.1:10250\" is not https://HOST:PORT",
		token + "kubelet: {address: 'https://127.0.0.1:10250'}":                  "2 findings",
		token + "kubelet: {address: 'https://h:1', token_file: /t, ca_file: ca}": "kubelet.ca_file: \"ca\" is not an absolute path",
		token + "kubelet: {address: 'http://192.0.2.1:10255'}":                   "is plain HTTP to an address that is not loopback",
		token + "kubelet: {address: 'http://127.0.0.1:10255', token_file: /t}":   "kubelet.token_file: has no use with plain HTTP",
	} {
		if _, err := ParseAgent("f.yaml", []byte(text), two); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{
		token + "workloads: {parents: 8}", token + "kubelet: {address: 'http://127.0.0.1:10255'}",
		token + "kubelet: {address: 'https://127.0.0.1:10250', token_file: /t, ca_file: /c, node_name: n}",
	} {
		if _, err := ParseAgent("f.yaml", []byte(text), two); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "server.yaml")
	if _, err := LoadServer(path); err == nil {
		t.Fatal("a file that is not there was read")
	}
	if err := os.WriteFile(path, []byte("listen: 127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := LoadServer(path)
	if err != nil || s.Listen != "127.0.0.1:1" {
		t.Fatal(s, err)
	}
}

// Every field can be written, is documented, and stands in the reference; every default is within the limits.
func TestReference(t *testing.T) {
	ref := Reference()
	var walk func(prefix string, typ reflect.Type)
	walk = func(prefix string, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := prefix + f.Tag.Get("yaml")
			if f.Tag.Get("yaml") == "" || len(f.Tag.Get("doc")) < 10 || !strings.Contains(ref, "| `"+key+"` |") {
				t.Errorf("%s.%s is not documented", typ.Name(), f.Name)
			}
			if def := f.Tag.Get("default"); def != "" {
				v := reflect.New(f.Type).Elem()
				if why := setText(v, def, limits{f.Tag.Get("min"), f.Tag.Get("max"), f.Tag.Get("one")}); why != "" {
					t.Errorf("the default of %s %s", key, why)
				}
			}
			switch {
			case f.Type.Kind() == reflect.Struct && f.Type != rateType:
				walk(key+".", f.Type)
			case f.Type.Kind() == reflect.Map && f.Type.Elem().Kind() == reflect.Struct:
				walk(key+".NAME.", f.Type.Elem())
			}
		}
	}
	walk("", reflect.TypeFor[Server]())
	walk("", reflect.TypeFor[Agent]())
}

// What prints can be read back.
func TestSizesAndRates(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := Size(rapid.Int64Range(0, 1<<40).Draw(rt, "size"))
		if got, err := parseSize(s.String()); err != nil || got != s {
			rt.Fatalf("%d printed as %s, read as %d (%v)", int64(s), s, int64(got), err)
		}
		r := Rate{rapid.Float64Range(0.001, 1e9).Draw(rt, "rate"), rapid.IntRange(1, 1<<30).Draw(rt, "burst")}
		got, err := parseRate(r.String())
		if err != nil || got.Burst != r.Burst || got.PerSecond/r.PerSecond > 1.0001 || r.PerSecond/got.PerSecond > 1.0001 {
			rt.Fatalf("%v read as %v (%v)", r, got, err)
		}
	})
}

func FuzzParseServer(f *testing.F) {
	for _, s := range []string{"", "listen: x", "limits: {queue: 1}", "a: [", "environments: [a, b]", "? a\n: b", "data: !!binary x", "<<: {a: b}", "- a", "root_holders: {a: {}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseServer("f", data)
		if (s == nil) == (err == nil) {
			t.Fatal("neither a configuration nor an error, or both")
		}
		if err == nil {
			if err := s.Validate(); err != nil {
				t.Fatalf("accepted, and not valid: %v", err)
			}
		}
	})
}
