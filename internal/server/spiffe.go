package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strconv"
	"time"

	"github.com/bailment/bailment/internal/control"
	"github.com/bailment/bailment/internal/federation"
	"github.com/bailment/bailment/internal/spiffe"
)

// documentAge is how long a cache may keep a document of keys. A new key is published days before it signs; a withdrawn one must not
// be believed for long.
const documentAge = time.Minute

// document answers for the documents that tell others whom to trust: the trust bundle (profile https_spiffe, since the certificate shown
// here is an X.509-SVID; a web server with a certificate for a DNS name may pass them on, for https_web and OpenID Connect), the keys of
// tokens, and the issuer's discovery document. They are public, small, and made when a key changes, not when they are asked for.
func (s *Server) document(environment string, r *http.Request) http.HandlerFunc {
	x := s.sites[environment]
	if x == nil {
		return nil
	}
	switch r.URL.Path {
	case spiffe.BundlePath:
		return x.serve(x.env.TrustBundle, "application/json")
	case spiffe.KeysPath:
		return x.serve(x.env.TokenKeys, "application/jwk-set+json")
	case spiffe.DiscoveryPath:
		return x.serve(x.env.Discovery, "application/json")
	}
	return nil
}

// serve writes a document, with what caches need. Nothing of an error is told: strangers ask.
func (x *site) serve(document func() ([]byte, error), contentType string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := document()
		switch {
		case err != nil:
			x.logger.Warn("making a document for others failed", "path", r.URL.Path, "err", err)
			http.Error(w, "unavailable", http.StatusServiceUnavailable)
			return
		case body == nil:
			http.NotFound(w, r)
			return
		}
		sum := sha256.Sum256(body)
		tag := `"` + hex.EncodeToString(sum[:16]) + `"`
		h := w.Header()
		h.Set("Cache-Control", "public, max-age="+strconv.Itoa(int(documentAge/time.Second)))
		h.Set("ETag", tag)
		h.Set("X-Content-Type-Options", "nosniff")
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.Set("Content-Type", contentType)
		h.Set("Content-Length", strconv.Itoa(len(body)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(body) // the client may be gone
		}
	}
}

// federate keeps the bundles of other trust domains current.
func (x *site) federate(ctx context.Context) {
	federation.Keep(ctx, federation.Options{Source: relations{x.env}, Logger: x.logger})
}

// relations are an environment's federations as package federation asks for them.
type relations struct{ env *control.Environment }

func (r relations) Relations(ctx context.Context) ([]federation.Relation, error) {
	all, err := r.env.Relations(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]federation.Relation, 0, len(all))
	for _, x := range all {
		out = append(out, federation.Relation{Name: x.Name, Pin: x.Pin, Endpoint: federation.Endpoint{
			TrustDomain: x.TrustDomain, URL: x.URL, Profile: x.Profile, ID: x.EndpointID, ServerName: x.ServerName, Known: x.Document, Roots: x.Roots,
		}})
	}
	return out, nil
}

func (r relations) Refreshed(ctx context.Context, name string, pin [32]byte, doc []byte) (bool, error) {
	return r.env.Refreshed(ctx, name, pin, doc)
}
