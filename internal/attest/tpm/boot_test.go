package tpm

import (
	"crypto/sha256"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/identity"
)

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// reference is what typical(kernel, …) measures, component by component.
func reference(version, kernel string) authority.Reference {
	r := authority.Reference{Name: "web", Version: version}
	for _, text := range []string{"shim", "grub", kernel, "initrd", "linux /vmlinuz root=/dev/vda1 ro", "/vmlinuz root=/dev/vda1 ro"} {
		r.Events = append(r.Events, sum(text))
	}
	return r
}

// TestReferences is the update path and its edges: old and new set side by side, windows, signed, bad.
func TestReferences(t *testing.T) {
	signer := newForger(t, nil)
	cert, other := signer.ca, newForger(t, nil).ca
	signed := func(r authority.Reference) authority.Reference {
		r.Signers = [][32]byte{sha256.Sum256(cert.Raw)}
		return r
	}
	window := func(r authority.Reference, from, until time.Duration) authority.Reference {
		if from != 0 {
			r.From = then.Add(from)
		}
		if until != 0 {
			r.Until = then.Add(until)
		}
		return r
	}
	byPCR := func(l *logBuilder, pcrs ...int) authority.Reference {
		log, err := parseLog(l.bytes())
		if err != nil {
			t.Fatal(err)
		}
		r := authority.Reference{Name: "golden", Version: "7", PCRs: map[int][][32]byte{}}
		for _, p := range pcrs {
			r.PCRs[p] = [][32]byte{array(5), log.replay(p)}
		}
		return r
	}
	secure := typical("kernel 1", cert.Raw)
	// Secure Boot was off; root has extended PCR 7 with what a signer would have left there.
	pretended := typical("kernel 9", nil).data(7, evAuthority, variableData(guidGlobal, "db", append(make([]byte, 16), cert.Raw...)))
	for name, c := range map[string]struct {
		log     *logBuilder // nil: none is sent, and the PCRs are those of secure
		pcrs    []int
		refs    []authority.Reference
		want    string
		version string
		finds   string
	}{
		"nothing to compare":                 {log: secure, want: "none"},
		"old set":                            {log: secure, refs: []authority.Reference{reference("1", "kernel 1")}, want: "known", version: "1"},
		"old and new set, old machine":       {log: secure, refs: []authority.Reference{reference("1", "kernel 1"), reference("2", "kernel 2")}, want: "known", version: "1"},
		"old and new set, new machine":       {log: typical("kernel 2", cert.Raw), refs: []authority.Reference{reference("1", "kernel 1"), reference("2", "kernel 2")}, want: "known", version: "2"},
		"new set not open yet":               {log: typical("kernel 2", cert.Raw), refs: []authority.Reference{reference("1", "kernel 1"), window(reference("2", "kernel 2"), time.Second, 0)}, want: "bad", finds: "PCR 4"},
		"new set opens now":                  {log: typical("kernel 2", cert.Raw), refs: []authority.Reference{window(reference("2", "kernel 2"), -time.Nanosecond, 0)}, want: "known", version: "2"},
		"old set has ended":                  {log: secure, refs: []authority.Reference{window(reference("1", "kernel 1"), 0, -time.Nanosecond), reference("2", "kernel 2")}, want: "bad", finds: "reference web 2"},
		"no set is open":                     {log: secure, refs: []authority.Reference{window(reference("1", "kernel 1"), time.Hour, 0)}, want: "bad", finds: "no set of reference values is open"},
		"unknown kernel":                     {log: typical("kernel 9", cert.Raw), refs: []authority.Reference{reference("1", "kernel 1")}, want: "bad", finds: "a program that the firmware started"},
		"unknown kernel, signed":             {log: typical("kernel 9", cert.Raw), refs: []authority.Reference{signed(reference("1", "kernel 1"))}, want: "signed", version: "1", finds: "Secure Boot is on"},
		"unknown kernel, another's signer":   {log: typical("kernel 9", other.Raw), refs: []authority.Reference{signed(reference("1", "kernel 1"))}, want: "bad", finds: "another signer"},
		"unknown kernel, no Secure Boot":     {log: typical("kernel 9", nil), refs: []authority.Reference{signed(reference("1", "kernel 1"))}, want: "bad", finds: "not proved to be on"},
		"signer without Secure Boot":         {log: pretended, refs: []authority.Reference{signed(reference("1", "kernel 1"))}, want: "bad", finds: "not proved to be on"},
		"known beats signed":                 {log: secure, refs: []authority.Reference{signed(reference("0", "kernel 0")), reference("1", "kernel 1")}, want: "known", version: "1"},
		"signers only":                       {log: secure, refs: []authority.Reference{signed(authority.Reference{Name: "any", Version: "x"})}, pcrs: []int{4, 7}, want: "signed", version: "x"},
		"unknown command line is not signed": {log: secureWith(cert.Raw, "init=/bin/sh"), refs: []authority.Reference{signed(reference("1", "kernel 1"))}, want: "bad", finds: "kernel cmdline"},
		"by PCRs":                            {log: secure, refs: []authority.Reference{byPCR(secure, 0, 4, 7, 9)}, want: "known", version: "7"},
		"by PCRs, no log":                    {refs: []authority.Reference{byPCR(secure, 0, 4, 7, 9)}, want: "known", version: "7"},
		"a PCR differs":                      {log: typical("kernel 2", cert.Raw), refs: []authority.Reference{byPCR(secure, 0, 4, 7)}, want: "bad", finds: "PCR 4 (boot loader and kernel) has another value"},
		"a PCR is not quoted":                {log: secure, pcrs: []int{0, 4}, refs: []authority.Reference{byPCR(secure, 0, 7)}, want: "bad", finds: "PCR 7 is not quoted"},
		"components, but no log":             {refs: []authority.Reference{reference("1", "kernel 1")}, want: "bad", finds: "there is no event log"},
		"components, but no PCR of them":     {log: secure, pcrs: []int{0, 7}, refs: []authority.Reference{reference("1", "kernel 1")}, want: "bad", finds: "no PCR with programs"},
		"components and PCRs, none of them":  {log: secure, pcrs: []int{0, 7}, refs: []authority.Reference{mixed(byPCR(secure, 7), reference("1", "kernel 1"))}, want: "bad", finds: "no PCR with programs"},
		"an empty set":                       {log: secure, refs: []authority.Reference{{Name: "void", Version: "0"}}, want: "bad", finds: "nothing to compare"},
		"nothing was measured":               {log: &logBuilder{}, refs: []authority.Reference{reference("1", "kernel 1")}, want: "bad", finds: "was measured"},
		"components and PCRs":                {log: secure, refs: []authority.Reference{mixed(byPCR(secure, 7), reference("1", "kernel 1"))}, want: "known", version: "7"},
		"a renamed event is found":           {log: renamed("kernel 9", cert.Raw), refs: []authority.Reference{reference("1", "kernel 1")}, want: "bad", finds: "PCR 4"},
	} {
		t.Run(name, func(t *testing.T) {
			l := c.log
			if l == nil {
				l = secure
			}
			f := newForger(t, l)
			if c.log == nil {
				f.ev.Log = nil
			}
			if c.pcrs != nil {
				f.quotes(c.pcrs...)
			}
			f.auth.References = c.refs
			res, err := Verify(f.input())
			if err != nil {
				t.Fatal(err)
			}
			b := res.Claims["boot"].(map[string]any)
			finds := ""
			for _, text := range b["findings"].([]any) {
				finds += text.(string) + "\n"
			}
			if b["reference"] != c.want || b["version"] != c.version || !strings.Contains(finds, c.finds) {
				t.Errorf("%v %q\n%s", b["reference"], b["version"], finds)
			}
			if c.want == "known" && finds != "" || (res.Assurance == identity.Measured) != (c.want == "known") {
				t.Errorf("%s: %s", res.Assurance, finds)
			}
		})
	}
}

func mixed(a, b authority.Reference) authority.Reference {
	a.Events = b.Events
	return a
}

// renamed gives the kernel's event the type of a mere notice.
func renamed(kernel string, signer []byte) *logBuilder {
	l := typical(kernel, signer)
	for i := range l.events {
		if l.events[i].digest == sum(kernel) {
			l.events[i].kind = 0x80000007
		}
	}
	return l
}

func secureWith(signer []byte, cmdline string) *logBuilder {
	l := typical("kernel 1", signer)
	for i := range l.events {
		if l.events[i].digest == sum("/vmlinuz root=/dev/vda1 ro") {
			l.events[i].digest, l.events[i].data = sum(cmdline), []byte("kernel_cmdline: "+cmdline+"\x00")
		}
	}
	return l
}

// TestSecureBoot: what root can do after the boot doesn't make Secure Boot look on, nor a signer look like the only one.
func TestSecureBoot(t *testing.T) {
	cert := newForger(t, nil).ca.Raw
	on := variableData(guidGlobal, "SecureBoot", []byte{1})
	state := func(l *logBuilder) (string, int) {
		log, err := parseLog(l.bytes())
		if err != nil {
			t.Fatal(err)
		}
		x, err := explain(l.bytes(), map[int][32]byte{7: log.replay(7)}, []int{7})
		if err != nil {
			t.Fatal(err)
		}
		s, signers := x.secureBoot()
		if signers == nil {
			return s, -1
		}
		return s, len(signers)
	}
	b := func() *logBuilder { return &logBuilder{} }
	entry := variableData(guidGlobal, "db", append(make([]byte, 16), cert...))
	for name, c := range map[string]struct {
		log     *logBuilder
		want    string
		signers int
	}{
		"on":                          {typical("k", cert), "on", 1},
		"off":                         {typical("k", nil), "off", 0},
		"no separator":                {b().data(7, evVariable, on), "unknown", -1},
		"nothing":                     {b(), "unknown", -1},
		"only a separator":            {b().separators(7), "unknown", 0},
		"said after the separator":    {b().separators(7).data(7, evVariable, on), "unknown", -1},
		"off, then on":                {b().data(7, evVariable, variableData(guidGlobal, "SecureBoot", []byte{0})).data(7, evVariable, on).separators(7), "off", 0},
		"text is not what's hashed":   {b().add(7, evVariable, sum("x"), on).separators(7), "unknown", 0},
		"another vendor's variable":   {b().data(7, evVariable, variableData(guidShim, "SecureBoot", []byte{1})).separators(7), "unknown", 0},
		"debug mode":                  {b().data(7, evVariable, on).data(7, 5, []byte("UEFI Debug Mode")).separators(7), "off", -1},
		"verified by a digest":        {b().data(7, evVariable, on).separators(7).data(7, evAuthority, variableData(guidGlobal, "db", make([]byte, 48))), "on", -1},
		"an entry that isn't shown":   {b().data(7, evVariable, on).separators(7).data(7, evAuthority, entry).add(7, evAuthority, sum("x"), nil), "on", -1},
		"shim's certificate":          {b().data(7, evVariable, on).separators(7).data(7, evAuthority, variableData(guidShim, "Shim", cert)), "on", 1},
		"verification by shim is off": {b().data(7, evVariable, on).separators(7).data(7, evAuthority, variableData(guidShim, "MokSBState", []byte{1})), "on", -1},
	} {
		if got, n := state(c.log); got != c.want || n != c.signers {
			t.Errorf("%s: %s, %d signers", name, got, n)
		}
	}
}

// TestCommandLine: only what was hashed is shown.
func TestCommandLine(t *testing.T) {
	wide := func(s string) []byte {
		var out []byte
		for _, c := range []byte(s + "\x00") {
			out = append(out, c, 0)
		}
		return out
	}
	b := func() *logBuilder { return &logBuilder{} }
	for name, c := range map[string]struct {
		log  *logBuilder
		want string
		note string
	}{
		"GRUB":               {b().grub("kernel_cmdline", "/vmlinuz ro"), "/vmlinuz ro", ""},
		"systemd":            {b().data(12, evIPL, wide("quiet ro")), "quiet ro", ""},
		"none":               {b().grub("grub_cmd", "linux /vmlinuz"), "", ""},
		"another was hashed": {b().add(8, evIPL, sum("init=/bin/sh"), []byte("kernel_cmdline: ro\x00")), "", ""},
		"two":                {b().grub("kernel_cmdline", "a").grub("kernel_cmdline", "b"), "", "several"},
		"the same twice":     {b().grub("kernel_cmdline", "a").grub("kernel_cmdline", "a"), "a", ""},
		"unprintable":        {b().grub("kernel_cmdline", "a\x1b[2Jb"), "", "not printable"},
		"too long":           {b().grub("kernel_cmdline", strings.Repeat("a", maxText+1)), "", "too long"},
	} {
		log, err := parseLog(c.log.bytes())
		if err != nil {
			t.Fatal(err)
		}
		x, err := explain(c.log.bytes(), map[int][32]byte{8: log.replay(8), 12: log.replay(12)}, []int{8, 12})
		if err != nil {
			t.Fatal(err)
		}
		got, notes := x.commandLine()
		if got != c.want || !strings.Contains(strings.Join(notes, ""), c.note) || (len(notes) > 0) != (c.note != "") {
			t.Errorf("%s: %q %q", name, got, notes)
		}
	}
}

// TestUnprovedEvents: of a PCR that the system went on to extend, the log's events are not believed, and a set that compares them doesn't fit.
func TestUnprovedEvents(t *testing.T) {
	l := typical("kernel 1", nil)
	l.data(12, evIPL, []byte("q\x00u\x00i\x00e\x00t\x00\x00\x00"))
	for i := range l.events {
		if label, _, _ := labelled(l.events[i]); label == "kernel_cmdline" {
			l.events[i].data = []byte("hidden")
		}
	}
	for changed, want := range map[bool]string{false: "quiet", true: ""} {
		f := newForger(t, l)
		f.quotes(4, 8, 12)
		r := reference("1", "kernel 1")
		r.Events = append(r.Events, l.events[len(l.events)-1].digest)
		f.auth.References = []authority.Reference{r}
		if changed {
			f.values[12] = array(1)
		}
		res, err := Verify(f.input())
		if err != nil {
			t.Fatal(err)
		}
		b := res.Claims["boot"].(map[string]any)
		if b["cmdline"] != want || (b["reference"] == "known") == changed {
			t.Errorf("changed %v: %v", changed, b)
		}
	}
}

// TestFindingsAreBounded: however much differs, the claims stay small.
func TestFindingsAreBounded(t *testing.T) {
	l := typical("kernel 1", nil)
	for i := range 300 {
		l.data(8, evIPL, []byte{byte(i), byte(i >> 8), 1})
		l.data(4, evBootApplication, []byte{byte(i), byte(i >> 8), 2})
	}
	f := newForger(t, l)
	f.auth.References = []authority.Reference{reference("1", "kernel 1")}
	all := make([]int, maxPCR+1)
	for i := range all {
		all[i] = i
	}
	f.quotes(all...)
	f.values[11], f.values[12], f.values[13] = array(1), array(2), array(3)
	res, err := Verify(f.input())
	if err != nil {
		t.Fatal(err)
	}
	findings := res.Claims["boot"].(map[string]any)["findings"].([]any)
	if len(findings) != maxFindings || !strings.HasPrefix(findings[maxFindings-1].(string), "and ") {
		t.Errorf("%d: %v", len(findings), findings)
	}
	if again, err := Verify(f.sealed()); err != nil || !reflect.DeepEqual(again, res) {
		t.Errorf("the verifier isn't pure: %v", err)
	}
}
