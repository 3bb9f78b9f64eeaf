package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/problem"
)

// withTests puts a Test document, whose spec is text, over a bundle.
func withTests(files Files, spec string) Files {
	files = maps.Clone(files)
	files["tests/with.yaml"] = []byte("apiVersion: bailment/v1\nkind: Test\nmetadata: {name: with}\nspec:\n" + spec)
	return files
}

func runTests(t testing.TB, files Files) *TestReport {
	t.Helper()
	r, err := mustCompile(t, files).RunTests(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// bare is the example without tests of its own.
func bare(t testing.TB) Files { return withoutTests(exampleFiles(t)) }

func withoutTests(files Files) Files {
	files = maps.Clone(files)
	maps.DeleteFunc(files, func(path string, _ []byte) bool { return strings.HasPrefix(path, "tests/") })
	return files
}

const webNode = `
  tokens:
    - {name: web, method: join-token, claims: {name: web-1}}
    - name: api
      method: workload
      node: /node/join-token/web-1
      claims: {unix: {uid: 1000, gid: 7}, process: {path: /usr/bin/payments-api}}
`

func TestRunTests(t *testing.T) {
	files := withTests(bare(t), webNode+`
  identities:
    - {name: a machine, token: web, expect: /node/join-token/web-1, rule: node-by-token, session: 1h}
    - {name: another machine, token: web, claims: {name: web 2}, expect: /node/join-token/web_202}
    - {name: no name, token: web, without: [name], expect: refuse, reason: no-identity}
    - {name: the service, token: api, expect: /workload/payments-api}
    - {name: asked, token: api, asks: /workload/payments-api, expect: /workload/payments-api, session: 10m}
    - {name: not asked, token: api, asks: /workload/payments-db, expect: refuse}
    - {name: the database, token: api, claims: {process: {path: /x/payments-db}}, expect: /workload/payments-db}
  cases:
    - {name: reads, token: api, secret: db/password, expect: allow, by: payments-api-reads-db, ttl: 1h}
    - {name: unbound, token: api, assurance: unbound, secret: db/password, expect: deny, reason: assurance-too-low, by: payments-api-reads-db}
    - {name: other purpose, token: api, secret: db/password, purpose: debug, expect: deny, reason: purpose}
    - {name: a person, identity: /human/alice, secret: db/password, expect: deny, by: no-human-reads, reason: denied}
    - {name: a person writes, identity: /human/alice, action: secret.write, secret: db/password, expect: allow}
    - {name: nobody, token: web, without: [name], secret: db/password, expect: deny, reason: no-identity}
`)
	r := runTests(t, files)
	for _, x := range r.Results {
		if !x.Pass {
			t.Errorf("%+v", x)
		}
	}
	if r.Passed != 13 || r.Failed != 0 || r.Err() != nil {
		t.Errorf("%d passed, %d failed, %v", r.Passed, r.Failed, r.Err())
	}
	tests := mustCompile(t, files).Tests()
	i := slices.IndexFunc(tests, func(x Test) bool { return x.Name == "with" })
	if i < 0 || len(tests[i].Cases) != 13 || tests[i].Cases[7].Asks != "secret.read on db/password to who shows a proof of workload for purpose runtime" || tests[i].Cases[7].Source.Line == 0 {
		t.Errorf("%+v", tests)
	}
}

// Each expectation that is wrong makes its case fail, and says what came instead.
func TestRunTestsFail(t *testing.T) {
	for _, c := range []struct{ kind, line, want, got, why string }{
		{"cases", "token: api, secret: db/password, expect: deny", "deny", "allow by payments-api-reads-db", "grants/payments-api.yaml:3:1: allow payments-api-reads-db: it applies"},
		{"cases", "token: api, secret: db/password, expect: allow, by: payments-db-reads-its-own", "allow by payments-db-reads-its-own", "allow by payments-api-reads-db", "the proof makes /workload/payments-api"},
		{"cases", "token: api, secret: db/password, expect: allow, ttl: 2h", "allow for 2h", "allow by payments-api-reads-db for 1h", ""},
		{"cases", "token: api, purpose: debug, secret: db/password, expect: allow", "allow", "deny by payments-api-reads-db (purpose)", "is not for this purpose"},
		{"cases", "identity: /human/alice, secret: db/password, expect: deny, reason: no-grant", "deny (no-grant)", "deny by no-human-reads (denied)", "the grant no-human-reads denies"},
		{"cases", "identity: /human/alice, secret: db/password, expect: deny, by: weak-nodes-never-read", "deny by weak-nodes-never-read", "deny by no-human-reads (denied)", ""},
		{"cases", "token: web, without: [name], secret: db/password, expect: allow", "allow", "deny (no-identity)", "there is no claim claims.name"},
		{"identities", "token: api, expect: refuse", "refuse", "/workload/payments-api by payments-api", "gives /workload/payments-api"},
		{"identities", "token: api, expect: /workload/payments-db", "/workload/payments-db", "/workload/payments-api by payments-api", ""},
		{"identities", "token: api, expect: /workload/payments-api, rule: payments-db", "/workload/payments-api by payments-db", "/workload/payments-api by payments-api", ""},
		{"identities", "token: api, expect: /workload/payments-api, session: 11m", "/workload/payments-api for 11m", "/workload/payments-api by payments-api for 10m", ""},
		{"identities", "token: web, without: [name], expect: quarantine", "quarantine", "refuse (no-identity)", ""},
		{"identities", "token: web, without: [name], expect: refuse, reason: posture", "refuse (posture)", "refuse (no-identity)", ""},
		{"identities", "token: web, without: [name], expect: /node/join-token/web-1", "/node/join-token/web-1", "refuse (no-identity)", ""},
	} {
		t.Run(c.line, func(t *testing.T) {
			r := runTests(t, withTests(bare(t), webNode+"  "+c.kind+":\n    - {name: planted, "+c.line+"}\n"))
			x := r.Results[len(r.Results)-1]
			if x.Pass || r.Failed != 1 || x.Want != c.want || x.Got != c.got || !strings.Contains(strings.Join(x.Why, "\n"), c.why) {
				t.Errorf("%+v", x)
			}
			if err := r.Err(); !problem.Is(err, problem.ReasonBundleInvalid) || !strings.Contains(err.Error(), "planted") {
				t.Errorf("%v", err)
			}
		})
	}
}

// A machine whose posture is wrong is refused, or quarantined; a test can tell the two apart.
func TestRunTestsPosture(t *testing.T) {
	for otherwise, other := range map[string]string{"refuse": "quarantine", "quarantine": "refuse"} {
		files := with(t, "Identity strict method: join-token, path: '/node/join-token/{claims.name}', require: 'claims.name.startsWith(\"web-\")', otherwise: "+otherwise)
		files = withTests(files, webNode+"  identities:\n    - {name: db, token: web, claims: {name: db-1}, expect: "+otherwise+", reason: posture}\n    - {name: wrong, token: web, claims: {name: db-1}, expect: "+other+"}\n")
		r := runTests(t, files)
		x := r.Results[len(r.Results)-2:]
		if !x[0].Pass || x[1].Pass {
			t.Errorf("%s: %+v", otherwise, x)
		}
	}
}

func TestRunTestsStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p := mustCompile(t, withTests(bare(t), webNode+"  cases:\n    - {name: x, token: api, secret: db/password, expect: allow}\n"))
	if _, err := p.RunTests(ctx); !problem.Is(err, problem.ReasonTooSlow) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Laying claims over a token's changes neither, and reaches into maps.
func TestLaid(t *testing.T) {
	base := map[string]any{"a": "1", "m": map[string]any{"x": int64(1), "y": int64(2)}}
	over := map[string]any{"b": "2", "m": map[string]any{"y": int64(3)}}
	before := fmt.Sprint(base, over)
	got, err := laid(base, over, [][]string{{"a"}, {"m", "x"}})
	if err != nil || fmt.Sprint(got) != "map[b:2 m:map[y:3]]" || fmt.Sprint(base, over) != before {
		t.Errorf("%v, %v; base %v", got, err, base)
	}
	for _, missing := range [][]string{{"c"}, {"m", "z"}, {"a", "z"}} {
		if _, err := laid(base, nil, [][]string{missing}); err == nil {
			t.Errorf("%v was left out", missing)
		}
	}
}

const perTestFile = 1_000

// benchTests is benchFiles with n cases, each with claims of its own.
func benchTests(t testing.TB, grants, n int) Files {
	files := benchFiles(t, grants, `claims.unix.uid == 1000 && node.path.startsWith("/node/join-token/")`)
	for from := 0; from < n; from += perTestFile {
		var b strings.Builder
		fmt.Fprintf(&b, "apiVersion: bailment/v1\nkind: Test\nmetadata: {name: bench%d}\nspec:\n  cases:\n", from)
		for i := from; i < min(from+perTestFile, n); i++ {
			k := i % grants
			for k%10 == 9 || k%50 == 49 {
				k--
			}
			fmt.Fprintf(&b, "    - {name: case %d, identity: /workload/team%d/app%d, node: /node/join-token/web-1, claims: {unix: {uid: 1000, gid: 7}}, secret: team%d/db/password%d, expect: allow}\n", i, k%50, k, k%50, k)
		}
		files[fmt.Sprintf("tests/bench%d.yaml", from)] = []byte(b.String())
	}
	return files
}

func BenchmarkRunTests(b *testing.B) {
	const n = 10_000
	p := mustCompile(b, benchTests(b, 10_000, n))
	b.ResetTimer()
	for b.Loop() {
		r, err := p.RunTests(context.Background())
		if err != nil || r.Failed > 0 {
			b.Fatal(err, r.Err())
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "cases/s")
}
