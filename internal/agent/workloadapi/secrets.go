package workloadapi

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	sds "github.com/bailment/bailment/api/envoysds/v1"
	"github.com/bailment/bailment/internal/problem"
)

// Names of Envoy's API v3.
const (
	secretService   = "envoy.service.secret.v3.SecretDiscoveryService"
	secretType      = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	validatorType   = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
	validatorPlugin = "envoy.tls.cert_validator.spiffe"
)

// Names of secrets beside SPIFFE IDs, as other SPIFFE agents have them.
const (
	nameSVID  = "default" // the process's own X.509-SVID
	nameRoots = "ROOTCA"  // the authorities of its own trust domain
	nameAll   = "ALL"     // those of all trust domains, each for its own
)

const (
	maxNames = 64
	maxName  = 2048 // bytes, the most of a SPIFFE ID (SPIFFE-ID §2.3)
)

// secretServer is the service's Go form, for gRPC's check of types.
type secretServer interface {
	stream(grpc.ServerStream) error
	fetch(context.Context, *sds.DiscoveryRequest) (*sds.DiscoveryResponse, error)
}

// secretDiscovery describes the service: the two calls that Envoy needs. Any other is unimplemented.
func secretDiscovery() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: secretService, HandlerType: (*secretServer)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "FetchSecrets", Handler: func(srv any, ctx context.Context, decode func(any) error, around grpc.UnaryServerInterceptor) (any, error) {
			r := new(sds.DiscoveryRequest)
			if err := decode(r); err != nil {
				return nil, err
			}
			info := &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + secretService + "/FetchSecrets"}
			return around(ctx, r, info, func(ctx context.Context, r any) (any, error) {
				return srv.(secretServer).fetch(ctx, r.(*sds.DiscoveryRequest))
			})
		}}},
		Streams: []grpc.StreamDesc{{
			StreamName: "StreamSecrets", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error { return srv.(secretServer).stream(stream) },
		}},
	}
}

// secrets serve Envoy (xDS, state of the world; each stream has the one type Secret).
type secrets struct{ *Server }

// wanted is what a request asks for.
type wanted struct {
	names []string // sorted; none: all
}

func wantedOf(r *sds.DiscoveryRequest) (wanted, error) {
	if r.TypeUrl != "" && r.TypeUrl != secretType {
		return wanted{}, invalid("the type is not %s", secretType)
	}
	if len(r.ResourceNames) > maxNames {
		return wanted{}, invalid("there are more than %d names", maxNames)
	}
	for _, n := range r.ResourceNames {
		if n == "" || len(n) > maxName {
			return wanted{}, invalid("a name has 1 to %d bytes", maxName)
		}
	}
	names := slices.Sorted(slices.Values(r.ResourceNames))
	return wanted{slices.Compact(names)}, nil
}

func (s secrets) fetch(ctx context.Context, r *sds.DiscoveryRequest) (*sds.DiscoveryResponse, error) {
	want, err := wantedOf(r)
	if err != nil {
		return nil, err
	}
	return answer(ctx, s.Server, func(ctx context.Context, c caller) (*sds.DiscoveryResponse, error) {
		b, err := s.bundles.await(ctx)
		if err != nil {
			return nil, err
		}
		v, _, err := c.entry.get(ctx)
		if err != nil {
			return nil, err
		}
		out, err := want.answer(v, c.entry.told(v, b))
		if err != nil {
			return nil, err
		}
		return out, c.conn.same()
	})
}

// subscription is the state of one stream. Its reader hands requests over, one at a time.
type subscription struct {
	s    secrets
	want wanted

	asked    bool // by what is in want, and there was no answer yet
	nonce    uint64
	version  string // that was sent last
	requests chan *sds.DiscoveryRequest
}

// stream answers the first request, each that asks for other names, and sends what changed. A request that accepts or refuses what
// was sent last is no question.
func (s secrets) stream(stream grpc.ServerStream) error {
	x := &subscription{s: s, requests: make(chan *sds.DiscoveryRequest)}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- x.read(ctx, stream) }()
	select {
	case r := <-x.requests:
		if err := x.take(r); err != nil {
			return err
		}
	case err := <-ended:
		return err
	case <-s.stopping:
		return statusOf(stopping())
	}
	// Requests and changes wake the same loop.
	again := make(chan struct{}, 1)
	failed := make(chan error, 1)
	turn := make(chan struct{}, 1) // of x's state
	go func() {
		for {
			select {
			case r := <-x.requests:
				turn <- struct{}{}
				err := x.take(r)
				<-turn
				if err != nil {
					failed <- err
					cancel()
					return
				}
				select {
				case again <- struct{}{}:
				default:
				}
			case err := <-ended:
				failed <- err
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	err := s.follow(ctx, func(c caller, v *svid, b *shownBundles) error {
		turn <- struct{}{}
		defer func() { <-turn }()
		return x.tell(stream, c, v, b)
	}, again)
	select {
	case err := <-failed:
		return err
	default:
		return statusOf(err)
	}
}

// read hands requests over until there are no more.
func (x *subscription) read(ctx context.Context, stream grpc.ServerStream) error {
	for {
		r := new(sds.DiscoveryRequest)
		if err := stream.RecvMsg(r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		select {
		case x.requests <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take reads a request.
func (x *subscription) take(r *sds.DiscoveryRequest) error {
	want, err := wantedOf(r)
	if err != nil {
		return err
	}
	// Before the first answer, what a request says of answers is about those of another stream.
	answered := x.nonce > 0
	if answered && r.ResponseNonce != "" && r.ResponseNonce != strconv.FormatUint(x.nonce, 10) {
		return nil // about an answer before the last one: what it says is old
	}
	if answered && r.ErrorDetail != nil {
		// It is not sent again: the next version is.
		x.s.log.Warn("an Envoy did not accept a secret", "code", r.ErrorDetail.Code, "version", x.version)
	}
	if !answered || !slices.Equal(want.names, x.want.names) {
		x.want, x.asked = want, true
	}
	return nil
}

// tell sends what there is, if the client has not got that.
func (x *subscription) tell(stream grpc.ServerStream, c caller, v *svid, b *shownBundles) error {
	out, err := x.want.answer(v, b)
	if err != nil {
		return err
	}
	if !x.asked && out.VersionInfo == x.version {
		return nil
	}
	if err := c.conn.same(); err != nil {
		return err
	}
	x.nonce++
	x.asked, x.version = false, out.VersionInfo
	out.Nonce = strconv.FormatUint(x.nonce, 10)
	return stream.SendMsg(out)
}

// answer makes the secrets that are wanted.
func (w wanted) answer(v *svid, b *shownBundles) (*sds.DiscoveryResponse, error) {
	names := w.names
	if len(names) == 0 {
		names = []string{v.session.Identity}
		for _, x := range b.All {
			names = append(names, scheme+x.TrustDomain)
		}
	}
	out := &sds.DiscoveryResponse{TypeUrl: secretType, VersionInfo: versionOf(v, b)}
	for _, n := range names {
		s, err := secretOf(n, v, b)
		if err != nil {
			return nil, err
		}
		value, err := proto.Marshal(s)
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "encoding a secret")
		}
		out.Resources = append(out.Resources, &anypb.Any{TypeUrl: secretType, Value: value})
	}
	return out, nil
}

// versionOf tells apart what can be sent to one process. It is the same on every stream, after a restart too.
func versionOf(v *svid, b *shownBundles) string {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(v.chain))))
	h.Write(v.chain)
	h.Write(b.digest[:])
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func secretOf(name string, v *svid, b *shownBundles) (*sds.Secret, error) {
	switch name {
	case nameSVID, v.session.Identity:
		return &sds.Secret{Name: name, Type: &sds.Secret_TlsCertificate{TlsCertificate: &sds.TlsCertificate{
			CertificateChain: inline(pemOf(v.session.Certificate.Certificate)),
			PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: v.key})),
		}}}, nil
	case nameRoots:
		return rootsOf(name, b.All[0]), nil
	case nameAll:
		return allOf(name, b)
	}
	if td, ok := strings.CutPrefix(name, scheme); ok {
		if x, ok := b.find(td); ok {
			return rootsOf(name, x), nil
		}
	}
	return nil, problem.New(problem.ReasonNoIdentity, "a secret is asked for that is neither the process's own identity nor a trust domain that it may know")
}

// rootsOf trusts one domain's authorities. Whom of them a proxy accepts is its own configuration's matter.
func rootsOf(name string, b Bundle) *sds.Secret {
	return &sds.Secret{Name: name, Type: &sds.Secret_ValidationContext{ValidationContext: &sds.CertificateValidationContext{
		TrustedCa: inline(pemOf(b.X509)),
	}}}
}

// allOf trusts each domain's authorities for its own identities, by Envoy's validator for SPIFFE.
func allOf(name string, b *shownBundles) (*sds.Secret, error) {
	config := new(sds.SPIFFECertValidatorConfig)
	for _, x := range b.All {
		if len(x.X509) > 0 {
			config.TrustDomains = append(config.TrustDomains, &sds.SPIFFECertValidatorConfig_TrustDomain{Name: x.TrustDomain, TrustBundle: inline(pemOf(x.X509))})
		}
	}
	value, err := proto.Marshal(config)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonInternal, "encoding the trust domains")
	}
	return &sds.Secret{Name: name, Type: &sds.Secret_ValidationContext{ValidationContext: &sds.CertificateValidationContext{
		CustomValidatorConfig: &sds.TypedExtensionConfig{Name: validatorPlugin, TypedConfig: &anypb.Any{TypeUrl: validatorType, Value: value}},
	}}}, nil
}

func pemOf(certificates [][]byte) []byte {
	var out []byte
	for _, der := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func inline(b []byte) *sds.DataSource {
	return &sds.DataSource{Specifier: &sds.DataSource_InlineBytes{InlineBytes: b}}
}
