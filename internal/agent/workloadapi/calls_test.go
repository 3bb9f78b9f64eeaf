package workloadapi_test

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	spiffe "github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

func want(t *testing.T, what string, err error, code codes.Code, reason problem.Reason) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), string(reason)) {
		t.Errorf("%s: %v, want %s (%s)", what, err, code, reason)
	}
}

// The common client gets what the specification says, and finds it valid.
func TestX509SVID(t *testing.T) {
	h := newHouse(t, nil)
	other := newEnvironment(t, "other.example")
	h.set(func() {
		h.foreign = []workloadapi.Bundle{{TrustDomain: "other.example", X509: other.roots, JWKS: other.jwks}}
	})
	h.RefreshBundles()
	c := h.client(t)
	eventually(t, "the other environment's bundle", func() bool {
		b, err := c.FetchX509Bundles(t.Context())
		return err == nil && b.Len() == 2
	})
	x, err := c.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := x.DefaultSVID()
	if len(x.SVIDs) != 1 || v.ID.String() != "spiffe://test.example/workload/app" {
		t.Fatalf("%+v", x.SVIDs)
	}
	if id, _, err := x509svid.Verify(v.Certificates, x.Bundles); err != nil || id != v.ID {
		t.Errorf("%v, %v", id, err)
	}
	for name, e := range map[string]*environment{"test.example": h.environment, "other.example": other} {
		b, ok := x.Bundles.Get(spiffeid.RequireTrustDomainFromString(name))
		if !ok || !b.HasX509Authority(e.ca) || len(b.X509Authorities()) != 1 {
			t.Errorf("%s: %v", name, b)
		}
		j, err := c.FetchJWTBundles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if jb, ok := j.Get(spiffeid.RequireTrustDomainFromString(name)); !ok || len(jb.JWTAuthorities()) != 1 {
			t.Errorf("%s: no JWT bundle", name)
		}
	}
}

// Who federates with whom is each workload's own: nobody is told of another's, not even whether a token of it is valid.
func TestFederatesWithNobody(t *testing.T) {
	h := newHouse(t, nil)
	other := newEnvironment(t, "other.example")
	h.set(func() {
		h.foreign = []workloadapi.Bundle{{TrustDomain: "other.example", X509: other.roots, JWKS: other.jwks}}
	})
	h.RefreshBundles()
	c := h.client(t)
	eventually(t, "the other environment's bundle", func() bool {
		b, err := c.FetchX509Bundles(t.Context())
		return err == nil && b.Len() == 2
	})
	s, err := other.Attest(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := other.IssueJWT(t.Context(), s, []string{"a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ValidateJWTSVID(t.Context(), token.Text, "a"); err != nil {
		t.Error(err)
	}
	check := func(what string, c *spiffe.Client) {
		t.Helper()
		if b, err := c.FetchX509Bundles(t.Context()); err != nil || b.Len() != 1 {
			t.Errorf("%s: %v, %v", what, b, err)
		}
		if b, err := c.FetchJWTBundles(t.Context()); err != nil || b.Len() != 1 {
			t.Errorf("%s: %v, %v", what, b, err)
		}
		_, err := c.ValidateJWTSVID(t.Context(), token.Text, "a")
		want(t, what, err, codes.InvalidArgument, "trusts")
	}
	h.set(func() { h.path = func(map[string]any) string { return "/workload/alone" } })
	h.with(func() { h.claims = map[string]any{"n": int64(1)} })
	alone := h.client(t)
	check("another workload", alone)
	if x, err := alone.FetchX509Context(t.Context()); err != nil || x.Bundles.Len() != 1 {
		t.Errorf("%v, %v", x, err)
	}
	h.set(func() { h.refuse = refused() })
	h.with(func() { h.claims = map[string]any{"n": int64(2)} })
	check("no identity", h.client(t))
}

// Processes of the same claims share one SVID and key; others don't.
func TestSharing(t *testing.T) {
	h := newHouse(t, nil)
	var wg sync.WaitGroup
	got := make([]*x509svid.SVID, 20)
	for i := range got {
		c := h.client(t)
		wg.Go(func() {
			v, err := c.FetchX509SVID(t.Context())
			if err != nil {
				t.Error(err)
			}
			got[i] = v
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, v := range got {
		if !v.Certificates[0].Equal(got[0].Certificates[0]) {
			t.Error("the same claims gave another SVID")
		}
	}
	if n := h.attested.Load(); n != 1 {
		t.Errorf("%d attestations", n)
	}
	h.with(func() { h.claims = map[string]any{"unix": map[string]any{"uid": int64(8)}} })
	v, err := h.client(t).FetchX509SVID(t.Context())
	if err != nil || v.Certificates[0].Equal(got[0].Certificates[0]) {
		t.Errorf("other claims: %v", err)
	}
	if n := h.Identities(); n != 2 {
		t.Errorf("%d identities", n)
	}
}

// Every call without the header, or with another value, is refused before anything else.
func TestSecurityHeader(t *testing.T) {
	h := newHouse(t, nil)
	api := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
	for name, md := range map[string]metadata.MD{
		"none": {}, "false": metadata.Pairs("workload.spiffe.io", "false"), "empty": metadata.Pairs("workload.spiffe.io", ""),
		"twice": metadata.Pairs("workload.spiffe.io", "true", "workload.spiffe.io", "true"),
	} {
		ctx := metadata.NewOutgoingContext(t.Context(), md)
		recv := func(s interface{ RecvMsg(any) error }, err error, m any) error {
			if err != nil {
				return err
			}
			return s.RecvMsg(m)
		}
		s1, err := api.FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		want(t, name, recv(s1, err, new(workload.X509SVIDResponse)), codes.InvalidArgument, "security header")
		s2, err := api.FetchX509Bundles(ctx, &workload.X509BundlesRequest{})
		want(t, name, recv(s2, err, new(workload.X509BundlesResponse)), codes.InvalidArgument, "security header")
		s3, err := api.FetchJWTBundles(ctx, &workload.JWTBundlesRequest{})
		want(t, name, recv(s3, err, new(workload.JWTBundlesResponse)), codes.InvalidArgument, "security header")
		_, err = api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: []string{"a"}})
		want(t, name, err, codes.InvalidArgument, "security header")
		_, err = api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: "b"})
		want(t, name, err, codes.InvalidArgument, "security header")
	}
	if h.attested.Load() != 0 || h.recognised != 0 {
		t.Error("a call without the header had an effect")
	}
}

// A no is PermissionDenied, and "not now" is Unavailable.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		reason problem.Reason
	}{
		"no rule":              {refused(), codes.PermissionDenied, problem.ReasonNoIdentity},
		"several rules":        {problem.New(problem.ReasonAmbiguous, "x"), codes.PermissionDenied, problem.ReasonAmbiguous},
		"held":                 {held(), codes.PermissionDenied, problem.ReasonHeld},
		"cut off":              {problem.New(problem.ReasonCutoff, "x"), codes.PermissionDenied, problem.ReasonCutoff},
		"quarantined":          {problem.New(problem.ReasonQuarantined, "x"), codes.PermissionDenied, problem.ReasonQuarantined},
		"away":                 {away(), codes.Unavailable, problem.ReasonUnreachable},
		"machine not proved":   {notProved(), codes.Unavailable, problem.ReasonSessionExpired},
		"server not authentic": {problem.New(problem.ReasonNotAuthentic, "x"), codes.Unavailable, problem.ReasonNotAuthentic},
		"answer unknown":       {problem.New(problem.ReasonUnknownOutcome, "x"), codes.Unavailable, problem.ReasonUnknownOutcome},
		"too much":             {problem.New(problem.ReasonOverloaded, "x"), codes.ResourceExhausted, problem.ReasonOverloaded},
		"a defect":             {problem.New(problem.ReasonInternal, "x"), codes.Internal, problem.ReasonInternal},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, nil)
			h.set(func() { h.refuse = c.err })
			cl := h.client(t)
			_, err := cl.FetchX509SVID(t.Context())
			want(t, "X.509", err, c.code, c.reason)
			_, err = cl.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a"})
			want(t, "JWT", err, c.code, c.reason)
			_, err = cl.FetchX509Bundles(t.Context())
			if c.code == codes.PermissionDenied {
				// The own bundle is everybody's.
				if err != nil {
					t.Error(err)
				}
				return
			}
			want(t, "bundles", err, c.code, c.reason)
		})
	}
}

// A process that can't be recognised, or is another one by the time of the delivery, gets nothing.
func TestOtherProcess(t *testing.T) {
	h := newHouse(t, nil)
	h.with(func() { h.unknown = problem.New(problem.ReasonInvalid, "no file to measure") })
	_, err := h.client(t).FetchX509SVID(t.Context())
	want(t, "not recognised", err, codes.PermissionDenied, problem.ReasonInvalid)
	h.with(func() { h.unknown = nil })
	c := h.client(t)
	u := watch(t, c)
	h.with(func() { h.other = problem.New(problem.ReasonNoIdentity, "gone") })
	h.set(func() { h.roots = append(h.roots, newEnvironment(t, "test.example").ca.Raw) })
	h.RefreshBundles()
	eventually(t, "the stream to end", func() bool { _, n := u.count(); return n > 0 })
	want(t, "gone while it watches", u.errs[0], codes.PermissionDenied, "gone")
	if n, _ := u.count(); n != 1 {
		t.Errorf("%d updates to who is gone", n)
	}
	_, err = c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a"})
	want(t, "gone", err, codes.PermissionDenied, "gone")
}

// A defect in one call is that call's, and the server goes on.
func TestPanic(t *testing.T) {
	h := newHouse(t, nil)
	c := h.client(t)
	h.with(func() { h.panics = true })
	_, err := c.FetchX509SVID(t.Context())
	want(t, "a stream", err, codes.Internal, problem.ReasonInternal)
	_, err = c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a"})
	want(t, "a call", err, codes.Internal, problem.ReasonInternal)
	h.with(func() { h.panics = false })
	if _, err := c.FetchX509SVID(t.Context()); err != nil {
		t.Error(err)
	}
}

// A failed renewal never takes a valid SVID away; a refusal does, at every stream, within a second.
func TestRevocation(t *testing.T) {
	h := newHouse(t, nil)
	c := h.client(t)
	u := watch(t, c)
	before := u.last().DefaultSVID()
	h.set(func() { h.refuse = away() })
	h.Look()
	eventually(t, "the renewal to be tried", func() bool { return h.attested.Load() > 1 })
	v, err := c.FetchX509SVID(t.Context())
	if err != nil || !v.Certificates[0].Equal(before.Certificates[0]) {
		t.Fatalf("while the server is away: %v", err)
	}
	h.set(func() { h.refuse = held() })
	began := time.Now()
	h.Look()
	eventually(t, "the stream to end", func() bool { _, n := u.count(); return n > 0 })
	if d := time.Since(began); d > time.Second {
		t.Errorf("a hold reached the stream after %s", d)
	}
	want(t, "held", u.errs[0], codes.PermissionDenied, problem.ReasonHeld)
	_, err = c.FetchX509SVID(t.Context())
	want(t, "held", err, codes.PermissionDenied, problem.ReasonHeld)
	// Who asks again and again costs nothing more.
	n := h.attested.Load()
	for range 100 {
		_, err = c.FetchX509SVID(t.Context())
		want(t, "held", err, codes.PermissionDenied, problem.ReasonHeld)
	}
	if more := h.attested.Load() - n; more > 1 {
		t.Errorf("%d attestations", more)
	}
	// Lifted: the news alone are enough.
	h.set(func() { h.refuse = nil })
	h.Look()
	v, err = c.FetchX509SVID(t.Context())
	if err != nil || v.Certificates[0].Equal(before.Certificates[0]) {
		t.Errorf("after the hold was lifted: %v", err)
	}
	eventually(t, "the watcher to have an SVID again", func() bool { n, _ := u.count(); return n > 1 })
}

// SVIDs are renewed at their half life while somebody watches, and changed bundles are pushed.
func TestPush(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.ttl = 4 * time.Second })
	c := h.client(t)
	u := watch(t, c)
	first := u.last().DefaultSVID()
	eventually(t, "the renewal", func() bool { n, _ := u.count(); return n >= 2 })
	if v := u.last().DefaultSVID(); v.Certificates[0].Equal(first.Certificates[0]) || time.Now().After(first.Certificates[0].NotAfter) {
		t.Error("not renewed in time")
	}
	ca := newEnvironment(t, "test.example").ca
	h.set(func() { h.roots = append(h.roots, ca.Raw) })
	h.RefreshBundles()
	eventually(t, "the new authority", func() bool {
		b, _ := u.last().Bundles.Get(spiffeid.RequireTrustDomainFromString("test.example"))
		return b.HasX509Authority(ca) && b.HasX509Authority(h.ca)
	})
	// What did not change is not sent.
	n, _ := u.count()
	h.RefreshBundles()
	if m, _ := u.count(); m > n+1 {
		t.Errorf("%d updates without a change", m-n)
	}
}

// Nobody watches, nobody fetches: nothing is renewed, and in the end nothing is kept.
func TestUnused(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.ttl = 2 * time.Second })
	if _, err := h.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the identity to be forgotten", func() bool { return h.Identities() == 0 })
	if n := h.attested.Load(); n != 1 {
		t.Errorf("%d attestations", n)
	}
}

func TestJWTSVID(t *testing.T) {
	h := newHouse(t, nil)
	c := h.client(t)
	id := spiffeid.RequireFromString("spiffe://test.example/workload/app")
	get := func(p jwtsvid.Params) *jwtsvid.SVID {
		t.Helper()
		v, err := c.FetchJWTSVID(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := get(jwtsvid.Params{Audience: "b", ExtraAudiences: []string{"a"}})
	again := get(jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b", "a"}, Subject: id})
	if v.ID != id || v.Marshal() != again.Marshal() || h.minted.Load() != 1 {
		t.Errorf("%v; %d issued", v.ID, h.minted.Load())
	}
	if w := get(jwtsvid.Params{Audience: "a"}); w.Marshal() == v.Marshal() {
		t.Error("another audience, the same token")
	}
	if x, err := c.ValidateJWTSVID(t.Context(), v.Marshal(), "a"); err != nil || x.ID != id || x.Claims["sub"] != id.String() {
		t.Errorf("%v, %v", x, err)
	}
	s, err := spiffe.NewJWTSource(t.Context(), spiffe.WithClient(c))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := jwtsvid.ParseAndValidate(v.Marshal(), s, []string{"b"}); err != nil {
		t.Error(err)
	}
	// Rotation: the new authority is pushed.
	h.rotateJWT(t, "k2")
	h.RefreshBundles()
	eventually(t, "the new JWT authority", func() bool {
		b, err := s.GetJWTBundleForTrustDomain(id.TrustDomain())
		return err == nil && b.HasJWTAuthority("k2")
	})
	// The server is away: what is valid goes on.
	h.set(func() { h.noToken = away() })
	if w := get(jwtsvid.Params{Audience: "a", ExtraAudiences: []string{"b"}}); w.Marshal() != v.Marshal() {
		t.Error("the cached token is not used")
	}
	_, err = c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "c"})
	want(t, "away", err, codes.Unavailable, problem.ReasonUnreachable)
	_, err = c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "c", Subject: spiffeid.RequireFromString("spiffe://test.example/workload/other")})
	want(t, "another's", err, codes.PermissionDenied, problem.ReasonNoIdentity)
}

func TestBadTokens(t *testing.T) {
	h := newHouse(t, nil)
	other := newEnvironment(t, "other.example")
	same := newEnvironment(t, "test.example")
	h.set(func() { h.ttl = -time.Hour })
	api := workload.NewSpiffeWorkloadAPIClient(h.dial(t))
	ctx := secured(t.Context())
	token := func(e *environment, audience ...string) string {
		s, err := e.Attest(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := e.IssueJWT(t.Context(), s, audience)
		if err != nil {
			t.Fatal(err)
		}
		return x.Text
	}
	expired := token(h.environment, "a")
	h.set(func() { h.ttl = time.Hour })
	good := token(h.environment, "a")
	parts := strings.Split(good, ".")
	for name, c := range map[string]struct{ svid, audience string }{
		"expired": {expired, "a"}, "wrong audience": {good, "b"}, "no audience": {good, ""}, "no token": {"", "a"}, "no JWT": {"x", "a"},
		"unknown trust domain": {token(other, "a"), "a"}, "another's signature": {token(same, "a"), "a"},
		"unsigned": {parts[0] + "." + parts[1] + ".", "a"}, "alg none": {"eyJhbGciOiJub25lIn0." + parts[1] + ".", "a"},
		"flipped": {parts[0] + "." + parts[1] + "." + strings.Repeat("A", len(parts[2])), "a"}, "too long": {good + strings.Repeat("A", 16<<10), "a"},
	} {
		r, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: c.audience, Svid: c.svid})
		if status.Code(err) != codes.InvalidArgument || r != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
		if c.svid != "" && len(c.svid) > 1 && strings.Contains(describe(err), c.svid) {
			t.Errorf("%s: the error quotes the token", name)
		}
	}
	if _, err := api.ValidateJWTSVID(ctx, &workload.ValidateJWTSVIDRequest{Audience: "a", Svid: good}); err != nil {
		t.Error(err)
	}
	for name, audience := range map[string][]string{
		"none": nil, "empty": {""}, "zero byte": {"a\x00b"}, "long": {strings.Repeat("a", 513)}, "many": strings.Split(strings.Repeat("a,", 17), ","),
	} {
		_, err := api.FetchJWTSVID(ctx, &workload.JWTSVIDRequest{Audience: audience})
		want(t, name, err, codes.InvalidArgument, "audience")
	}
}

// files is a watcher as spiffe-helper is one: it writes what other programs read.
type files struct{ dir string }

func (f files) OnX509ContextUpdate(c *spiffe.X509Context) {
	v := c.DefaultSVID()
	chain, key, err := v.Marshal()
	if err != nil {
		return
	}
	b, ok := c.Bundles.Get(v.ID.TrustDomain())
	if !ok {
		return
	}
	roots, err := b.Marshal()
	if err != nil {
		return
	}
	for name, text := range map[string][]byte{"svid.pem": chain, "key.pem": key, "bundle.pem": roots} {
		if os.WriteFile(filepath.Join(f.dir, name+".new"), text, 0o600) == nil {
			_ = os.Rename(filepath.Join(f.dir, name+".new"), filepath.Join(f.dir, name))
		}
	}
}

func (f files) OnX509ContextWatchError(error) {}

// A helper's files are valid together, and are replaced when the SVID is.
func TestHelper(t *testing.T) {
	h := newHouse(t, nil)
	h.set(func() { h.ttl = 3 * time.Second })
	f := files{t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	c := h.client(t)
	go func() {
		defer close(done)
		_ = c.WatchX509Context(ctx, f)
	}()
	defer func() { cancel(); <-done }()
	var serials []string
	eventually(t, "three generations of files", func() bool {
		v, err := x509svid.Load(filepath.Join(f.dir, "svid.pem"), filepath.Join(f.dir, "key.pem"))
		if err != nil {
			return false
		}
		roots := x509.NewCertPool()
		text, err := os.ReadFile(filepath.Join(f.dir, "bundle.pem"))
		if err != nil || !roots.AppendCertsFromPEM(text) {
			return false
		}
		if _, err := v.Certificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Fatal(err)
		}
		if s := v.Certificates[0].SerialNumber.String(); len(serials) == 0 || serials[len(serials)-1] != s {
			serials = append(serials, s)
		}
		return len(serials) == 3
	})
}
