package workloadapi

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/bailment/bailment/internal/problem"
)

// Bounds of JWT-SVIDs.
const (
	maxAudiences = 8
	maxAudience  = 512 // bytes
	maxToken     = 16 << 10
	tokensKept   = 64 // of one identity
)

// scheme begins a SPIFFE ID.
const scheme = "spiffe://"

// shown is what FetchX509SVID answers for an SVID and bundles. It is shared by all who get it, and never changed.
type shown struct {
	svid     *svid
	bundles  *shownBundles
	response *workload.X509SVIDResponse
}

// view is what an identity is told of the bundles.
type view struct {
	all  *shownBundles
	id   string
	told *shownBundles
}

// told is what the entry's processes are told of the bundles; v is nil if they have no identity. It stays the same value
// while it says the same.
func (e *entry) told(v *svid, all *shownBundles) *shownBundles {
	id := ""
	if v != nil {
		id = v.session.Identity
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.view.all == all && e.view.id == id {
		return e.view.told
	}
	told := all.of(id)
	if e.view.told != nil && e.view.told.digest == told.digest {
		told = e.view.told
	}
	e.view = view{all, id, told}
	return told
}

// x509Of is the answer for what there is now.
func (e *entry) x509Of(v *svid, b *shownBundles) *workload.X509SVIDResponse {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.shown != nil && e.shown.svid == v && e.shown.bundles == b {
		return e.shown.response
	}
	own := b.All[0]
	r := &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{
			SpiffeId: v.session.Identity, X509Svid: v.chain, X509SvidKey: v.key, Bundle: slices.Concat(own.X509...),
		}},
		FederatedBundles: make(map[string][]byte),
	}
	for _, x := range b.All[1:] {
		if len(x.X509) > 0 {
			r.FederatedBundles[scheme+x.TrustDomain] = slices.Concat(x.X509...)
		}
	}
	if e.svid == v {
		e.shown = &shown{v, b, r}
	}
	return r
}

// caller is a call's process, and its identity's entry.
type caller struct {
	conn  *conn
	entry *entry
	leave func()
}

func (s *Server) caller(ctx context.Context) (caller, error) {
	c, err := connOf(ctx)
	if err != nil {
		return caller{}, err
	}
	claims, digest, err := c.recognise(ctx)
	if err != nil {
		return caller{}, err
	}
	e, leave, err := s.identities.enter(c.Peer.UID, digest, claims)
	return caller{c, e, leave}, err
}

// first bounds the wait for the first answer.
func first(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, firstAnswer, errSlow)
}

// answer has f answer a call of one answer, within the time of a first one.
func answer[R any](ctx context.Context, s *Server, f func(context.Context, caller) (R, error)) (R, error) {
	var none R
	ctx, cancel := first(ctx)
	defer cancel()
	c, err := s.caller(ctx)
	if err != nil {
		return none, statusOf(err)
	}
	defer c.leave()
	r, err := f(ctx, c)
	if err != nil {
		return none, statusOf(err)
	}
	return r, nil
}

// wake waits for one of the changes, or the end of the call or of the server, which are an error.
func (s *Server) wake(ctx context.Context, svid, bundles, again <-chan struct{}) error {
	select {
	case <-svid:
	case <-bundles:
	case <-again:
	case <-ctx.Done():
		return problem.Wrap(ctx.Err(), problem.ReasonCanceled, "the caller is gone")
	case <-s.stopping:
		return stopping()
	}
	return nil
}

// FetchX509SVID streams the process's X.509-SVID and the bundles: now, and whenever there is something new. It ends with
// PermissionDenied when the process has no identity any more.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, out grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	var sent *workload.X509SVIDResponse
	err := s.follow(out.Context(), func(c caller, v *svid, b *shownBundles) error {
		r := c.entry.x509Of(v, b)
		if r == sent {
			return nil
		}
		// Nothing is delivered to who is not the one any more that was recognised.
		if err := c.conn.same(); err != nil {
			return err
		}
		sent = r
		return out.Send(r)
	}, nil)
	return statusOf(err)
}

// follow calls tell with what the process has now and whenever that changed, or again is signalled, until the call ends.
func (s *Server) follow(ctx context.Context, tell func(caller, *svid, *shownBundles) error, again <-chan struct{}) error {
	c, err := s.caller(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	soon, cancel := first(ctx)
	defer cancel()
	if _, err := s.bundles.await(soon); err != nil {
		return err
	}
	told := false
	for {
		now, newBundles, _ := s.bundles.peek()
		v, newSVID, err := c.entry.get(soon)
		switch {
		case err == nil:
			if err := tell(c, v, c.entry.told(v, now)); err != nil {
				return err
			}
			told = true
			// From here on, what is not there yet is waited for as long as the caller likes.
			cancel()
			soon = ctx
		case !told || problem.KindOf(err) == problem.Refused:
			return err
		case newSVID == nil: // the call is over
			return err
		}
		if err := s.wake(ctx, newSVID, newBundles, again); err != nil {
			return err
		}
	}
}

// FetchX509Bundles streams the X.509 bundles of the trust domains that the process's identity federates with, and of its own.
// A process without an identity gets its own's: that is no secret.
func (s *Server) FetchX509Bundles(_ *workload.X509BundlesRequest, out grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return statusOf(s.followBundles(out.Context(), func(b *shownBundles) error {
		r := &workload.X509BundlesResponse{Bundles: make(map[string][]byte)}
		for _, x := range b.All {
			r.Bundles[scheme+x.TrustDomain] = slices.Concat(x.X509...)
		}
		return out.Send(r)
	}))
}

// FetchJWTBundles streams the JWT bundles of the same trust domains.
func (s *Server) FetchJWTBundles(_ *workload.JWTBundlesRequest, out grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return statusOf(s.followBundles(out.Context(), func(b *shownBundles) error {
		r := &workload.JWTBundlesResponse{Bundles: make(map[string][]byte)}
		for _, x := range b.All {
			r.Bundles[scheme+x.TrustDomain] = x.jwks()
		}
		return out.Send(r)
	}))
}

// jwks is a document also where there are no keys.
func (b Bundle) jwks() []byte {
	if len(b.JWKS) == 0 {
		return []byte(`{"keys":[]}`)
	}
	return b.JWKS
}

// followBundles calls tell with the bundles that the process is told of, now and whenever they changed, until the call ends.
func (s *Server) followBundles(ctx context.Context, tell func(*shownBundles) error) error {
	c, err := s.caller(ctx)
	if err != nil {
		return err
	}
	defer c.leave()
	soon, cancel := first(ctx)
	defer cancel()
	if _, err := s.bundles.await(soon); err != nil {
		return err
	}
	var last *shownBundles
	for {
		now, newBundles, _ := s.bundles.peek()
		b, newSVID, err := c.bundles(soon, now)
		switch {
		case err == nil && (last == nil || b.digest != last.digest):
			if err := c.conn.same(); err != nil {
				return err
			}
			if err := tell(b); err != nil {
				return err
			}
			last = b
			cancel()
			soon = ctx
		case err != nil && (last == nil || newSVID == nil):
			return err
		}
		if err := s.wake(ctx, newSVID, newBundles, nil); err != nil {
			return err
		}
	}
}

// bundles are what the process is told of them now.
func (c caller) bundles(ctx context.Context, all *shownBundles) (b *shownBundles, changed <-chan struct{}, err error) {
	v, changed, err := c.entry.get(ctx)
	if err != nil && problem.KindOf(err) != problem.Refused {
		return nil, changed, err
	}
	return c.entry.told(v, all), changed, nil
}

// FetchJWTSVID gives a JWT-SVID for the process's identity and an audience.
func (s *Server) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	audience, err := audienceOf(r.Audience)
	if err != nil {
		return nil, err
	}
	return answer(ctx, s, func(ctx context.Context, c caller) (*workload.JWTSVIDResponse, error) {
		v, _, err := c.entry.get(ctx)
		if err != nil {
			return nil, err
		}
		if r.SpiffeId != "" && r.SpiffeId != v.session.Identity {
			return nil, problem.New(problem.ReasonNoIdentity, "the process is not the one that it asks for a JWT-SVID of")
		}
		t, err := c.entry.token(ctx, v, audience)
		if err != nil && problem.KindOf(err) == problem.Invalid {
			return nil, invalid("the environment takes no such audience")
		}
		if err != nil {
			return nil, err
		}
		if err := c.conn.same(); err != nil {
			return nil, err
		}
		return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: v.session.Identity, Svid: t.Text}}}, nil
	})
}

// audienceOf checks an audience, and puts it into one order.
func audienceOf(audience []string) ([]string, error) {
	if len(audience) == 0 || len(audience) > maxAudiences {
		return nil, invalid("a JWT-SVID has 1 to %d audiences", maxAudiences)
	}
	out := slices.Clone(audience)
	slices.Sort(out)
	out = slices.Compact(out)
	for _, a := range out {
		if a == "" || len(a) > maxAudience || strings.ContainsRune(a, 0) {
			return nil, invalid("an audience has 1 to %d bytes, none of which is zero", maxAudience)
		}
	}
	return out, nil
}

// token is a JWT-SVID from the cache, or a new one from its half life on. One that is valid is used until its end.
func (e *entry) token(ctx context.Context, v *svid, audience []string) (Token, error) {
	e.mu.Lock()
	tokens := e.tokens
	e.mu.Unlock()
	key := strings.Join(audience, "\x00")
	fresh := func() (Token, bool) {
		t, ok := tokens.Get(key)
		return t, ok && time.Now().Before(t.Issued.Add(t.Expires.Sub(t.Issued)/2))
	}
	if t, ok := fresh(); ok {
		return t, nil
	}
	select {
	case e.minted <- struct{}{}:
		defer func() { <-e.minted }()
	case <-ctx.Done():
		return Token{}, tooLate(ctx)
	}
	old, ok := fresh()
	if ok {
		return old, nil
	}
	t, err := e.x.s.cfg.Source.IssueJWT(ctx, v.session, audience)
	switch {
	case err == nil:
		tokens.Put(key, t)
		return t, nil
	case problem.KindOf(err) != problem.Refused && time.Now().Before(old.Expires):
		return old, nil
	}
	return Token{}, err
}

// ValidateJWTSVID checks a JWT-SVID of a trust domain that the process is told of.
func (s *Server) ValidateJWTSVID(ctx context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if r.Audience == "" || len(r.Audience) > maxAudience {
		return nil, invalid("an audience of 1 to %d bytes must be given", maxAudience)
	}
	if r.Svid == "" || len(r.Svid) > maxToken {
		return nil, invalid("a JWT-SVID of 1 to %d bytes must be given", maxToken)
	}
	return answer(ctx, s, func(ctx context.Context, c caller) (*workload.ValidateJWTSVIDResponse, error) {
		all, err := s.bundles.await(ctx)
		if err != nil {
			return nil, err
		}
		b, _, err := c.bundles(ctx, all)
		if err != nil {
			return nil, err
		}
		t, err := jwtsvid.ParseAndValidate(r.Svid, b, []string{r.Audience})
		if err != nil {
			// The library's message may quote the token.
			return nil, invalid("the JWT-SVID is not valid for this audience now, or not of a trust domain that this environment trusts")
		}
		claims, err := structpb.NewStruct(t.Claims)
		if err != nil {
			return nil, invalid("the JWT-SVID has claims that can't be shown")
		}
		return &workload.ValidateJWTSVIDResponse{SpiffeId: t.ID.String(), Claims: claims}, nil
	})
}

// GetJWTBundleForTrustDomain makes shownBundles a jwtbundle.Source.
func (b *shownBundles) GetJWTBundleForTrustDomain(td spiffeid.TrustDomain) (*jwtbundle.Bundle, error) {
	x, ok := b.find(td.Name())
	if !ok {
		return nil, problem.New(problem.ReasonIssuer, "there is no bundle of this trust domain")
	}
	return jwtbundle.Parse(td, x.jwks())
}
