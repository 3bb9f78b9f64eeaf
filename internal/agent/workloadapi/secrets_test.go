package workloadapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/bailment/bailment/internal/agent/workloadapi"
	"github.com/bailment/bailment/internal/problem"
)

const (
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	app        = "spiffe://test.example/workload/app"
)

// decode reads an answer by Envoy's own types, strictly: what they don't know is an error.
func decode(t *testing.T, r *discovery.DiscoveryResponse) map[string]*tlsv3.Secret {
	t.Helper()
	out := make(map[string]*tlsv3.Secret)
	if r.TypeUrl != secretType || len(r.ProtoReflect().GetUnknown()) > 0 {
		t.Fatalf("%v", r)
	}
	for _, a := range r.Resources {
		s := new(tlsv3.Secret)
		if err := a.UnmarshalTo(s); err != nil {
			t.Fatal(err)
		}
		if len(s.ProtoReflect().GetUnknown()) > 0 || s.ValidateAll() != nil {
			t.Errorf("not Envoy's: %v", s)
		}
		out[s.Name] = s
	}
	return out
}

func certificate(t *testing.T, s *tlsv3.Secret) *x509.Certificate {
	t.Helper()
	c := s.GetTlsCertificate()
	pair, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func authority(t *testing.T, text []byte) []byte {
	t.Helper()
	b, rest := pem.Decode(text)
	if b == nil || len(rest) > 0 {
		t.Fatal("not one certificate")
	}
	return b.Bytes
}

func TestFetchSecrets(t *testing.T) {
	h := newHouse(t, nil)
	other := newEnvironment(t, "other.example")
	h.set(func() { h.foreign = []workloadapi.Bundle{{TrustDomain: "other.example", X509: other.roots}} })
	h.RefreshBundles()
	api := secret.NewSecretDiscoveryServiceClient(h.dial(t))
	fetch := func(names ...string) (map[string]*tlsv3.Secret, error) {
		r, err := api.FetchSecrets(t.Context(), &discovery.DiscoveryRequest{ResourceNames: names, TypeUrl: secretType})
		if err != nil {
			return nil, err
		}
		return decode(t, r), nil
	}
	eventually(t, "the other environment's bundle", func() bool { _, err := fetch("spiffe://other.example"); return err == nil })
	all, err := fetch()
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(mapsKeys(all)); !slices.Equal(names, []string{"spiffe://other.example", "spiffe://test.example", app}) {
		t.Errorf("%q", names)
	}
	some, err := fetch("default", app, "ROOTCA", "spiffe://other.example", "ALL", "default")
	if err != nil || len(some) != 5 {
		t.Fatal(some, err)
	}
	leaf := certificate(t, some["default"])
	if leaf.URIs[0].String() != app || !leaf.Equal(certificate(t, some[app])) || leaf.CheckSignatureFrom(h.ca) != nil {
		t.Errorf("%v", leaf.URIs)
	}
	if got := authority(t, some["ROOTCA"].GetValidationContext().GetTrustedCa().GetInlineBytes()); string(got) != string(h.ca.Raw) {
		t.Error("ROOTCA is not the own authority")
	}
	if got := authority(t, some["spiffe://other.example"].GetValidationContext().GetTrustedCa().GetInlineBytes()); string(got) != string(other.ca.Raw) {
		t.Error("the other authority is another")
	}
	x := some["ALL"].GetValidationContext().GetCustomValidatorConfig()
	config := new(tlsv3.SPIFFECertValidatorConfig)
	if err := x.GetTypedConfig().UnmarshalTo(config); err != nil || x.Name != "envoy.tls.cert_validator.spiffe" || config.ValidateAll() != nil {
		t.Fatal(x, err)
	}
	for i, e := range []*environment{h.environment, other} {
		td := config.TrustDomains[i]
		if td.Name != e.name || string(authority(t, td.TrustBundle.GetInlineBytes())) != string(e.ca.Raw) {
			t.Errorf("%v", td.Name)
		}
	}
	for name, names := range map[string][]string{
		"another workload": {"spiffe://test.example/workload/other"}, "unknown domain": {"spiffe://x.example"}, "beside a good one": {"default", "x"},
	} {
		_, err := fetch(names...)
		want(t, name, err, codes.PermissionDenied, problem.ReasonNoIdentity)
	}
	for name, names := range map[string][]string{"empty": {""}, "long": {strings.Repeat("a", 2049)}, "many": slices.Repeat([]string{"default"}, 65)} {
		_, err := fetch(names...)
		want(t, name, err, codes.InvalidArgument, "name")
	}
	_, err = api.FetchSecrets(t.Context(), &discovery.DiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"})
	want(t, "another type", err, codes.InvalidArgument, "type")
	h.set(func() { h.refuse = held() })
	h.Look()
	_, err = fetch("default")
	want(t, "held", err, codes.PermissionDenied, problem.ReasonHeld)
}

func mapsKeys(m map[string]*tlsv3.Secret) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// envoy plays Envoy's side of a stream: it keeps a node of some size, and acknowledges.
type envoy struct {
	t      *testing.T
	stream secret.SecretDiscoveryService_StreamSecretsClient
	last   *discovery.DiscoveryResponse
	got    chan *discovery.DiscoveryResponse
	err    error
}

func newEnvoy(t *testing.T, h *house) *envoy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	s, err := secret.NewSecretDiscoveryServiceClient(h.dial(t)).StreamSecrets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	e := &envoy{t: t, stream: s, got: make(chan *discovery.DiscoveryResponse, 16)}
	go func() {
		defer close(e.got)
		for {
			r, err := s.Recv()
			if err != nil {
				e.err = err
				return
			}
			e.got <- r
		}
	}()
	return e
}

func (e *envoy) ask(nonce, version string, refused *rpcstatus.Status, names ...string) {
	e.t.Helper()
	r := &discovery.DiscoveryRequest{
		ResourceNames: names, TypeUrl: secretType, VersionInfo: version, ResponseNonce: nonce, ErrorDetail: refused,
		Node: &corev3.Node{Id: "envoy-1", UserAgentName: strings.Repeat("x", 60<<10)},
	}
	if err := e.stream.Send(r); err != nil {
		e.t.Fatal(err)
	}
}

func (e *envoy) next(what string) map[string]*tlsv3.Secret {
	e.t.Helper()
	select {
	case r, ok := <-e.got:
		if !ok {
			e.t.Fatalf("%s: the stream ended: %v", what, e.err)
		}
		if e.last != nil && r.Nonce == e.last.Nonce {
			e.t.Errorf("%s: a nonce came twice", what)
		}
		e.last = r
		return decode(e.t, r)
	case <-time.After(10 * time.Second):
		e.t.Fatalf("%s: nothing came", what)
	}
	return nil
}

func (e *envoy) ack(names ...string) { e.ask(e.last.Nonce, e.last.VersionInfo, nil, names...) }

// quiet is shown by the next answer being to the next question.
func (e *envoy) quiet(what string, names ...string) map[string]*tlsv3.Secret {
	e.t.Helper()
	before, _ := strconv.Atoi(e.last.Nonce)
	e.ask(e.last.Nonce, e.last.VersionInfo, nil, names...)
	out := e.next(what)
	if n, _ := strconv.Atoi(e.last.Nonce); n != before+1 || len(out) != len(names) {
		e.t.Errorf("%s: something else was sent before: nonce %d after %d", what, n, before)
	}
	return out
}

func TestStreamSecrets(t *testing.T) {
	h := newHouse(t, nil)
	e := newEnvoy(t, h)
	// As after a reconnection: what it says of an answer is about another stream.
	e.ask("17", "old", nil, "default")
	first := certificate(t, e.next("the first answer")["default"])
	version := e.last.VersionInfo
	if version == "" {
		t.Error("no version")
	}
	e.ack("default")
	e.ack("default")
	out := e.quiet("other names", "default", "ROOTCA")
	if e.last.VersionInfo != version || !certificate(t, out["default"]).Equal(first) {
		t.Error("the same secrets have another version")
	}
	e.ack("ROOTCA", "default") // the order of names is nothing
	// An old nonce is no question.
	for range 5 {
		e.ask("1", version, nil, "ROOTCA")
		if out := e.quiet("an old nonce", "ALL"); out["ALL"] == nil {
			t.Error("a question about an old answer was answered")
		}
		e.ack("ROOTCA", "default")
		e.next("the former names")
	}
	// Rotation is pushed.
	h.Look()
	out = e.next("the rotation")
	if certificate(t, out["default"]).Equal(first) || e.last.VersionInfo == version || len(out) != 2 {
		t.Error("nothing new was pushed")
	}
	// Refused by Envoy: not sent again, but the next one is.
	e.ask(e.last.Nonce, version, &rpcstatus.Status{Code: 13, Message: "no"}, "ROOTCA", "default")
	refusedVersion := e.last.VersionInfo
	ca := newEnvironment(t, "test.example").ca
	h.set(func() { h.roots = append(h.roots, ca.Raw) })
	h.RefreshBundles()
	out = e.next("after a refused one")
	if e.last.VersionInfo == refusedVersion {
		t.Error("what was refused is sent again")
	}
	if roots := string(out["ROOTCA"].GetValidationContext().GetTrustedCa().GetInlineBytes()); strings.Count(roots, "BEGIN CERTIFICATE") != 2 {
		t.Error("the new authority is missing")
	}
	h.set(func() { h.refuse = held() })
	h.Look()
	for range e.got { //nolint:revive // until the end
	}
	want(t, "held", e.err, codes.PermissionDenied, problem.ReasonHeld)
}

func TestStreamEnds(t *testing.T) {
	h := newHouse(t, nil)
	for name, c := range map[string]struct {
		ask  func(e *envoy)
		code codes.Code
	}{
		"another's":  {func(e *envoy) { e.ask("", "", nil, "spiffe://test.example/workload/other") }, codes.PermissionDenied},
		"bad name":   {func(e *envoy) { e.ask("", "", nil, "") }, codes.InvalidArgument},
		"bad later":  {func(e *envoy) { e.ask("", "", nil, "default"); e.next("first"); e.ask("1", "", nil, "default", "") }, codes.InvalidArgument},
		"other type": {func(e *envoy) { _ = e.stream.Send(&discovery.DiscoveryRequest{TypeUrl: "x"}) }, codes.InvalidArgument},
	} {
		e := newEnvoy(t, h)
		c.ask(e)
		for range e.got { //nolint:revive // until the end
		}
		want(t, name, e.err, c.code, "")
	}
	e := newEnvoy(t, h)
	if err := e.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for range e.got { //nolint:revive // until the end
	}
	if e.err.Error() != "EOF" {
		t.Errorf("a stream without a question: %v", e.err)
	}
}

// The bytes are Envoy's, whatever the fields hold.
func TestRequestsOfEnvoy(t *testing.T) {
	r := &discovery.DiscoveryRequest{
		VersionInfo: "v", ResourceNames: []string{"a", "b"}, TypeUrl: secretType, ResponseNonce: "n", ErrorDetail: &rpcstatus.Status{Code: 3, Message: "m"},
	}
	text, err := proto.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	got, err := workloadapi.ParseDiscovery(text)
	if err != nil || got != "v [a b] "+secretType+" n 3 m" {
		t.Errorf("%q, %v", got, err)
	}
}
