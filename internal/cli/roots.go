package cli

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// endsSoon is when a root that ends is worth a word.
const endsSoon = 90 * 24 * time.Hour

func (a *app) rootsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "roots", Short: "What attestation trusts: roots, issuers and keys", RunE: group, Args: cobra.ArbitraryArgs,
		Long: `Attestation trusts what the bundle's authorities name, and nothing else: no root is built into
this binary. An authority is a document in the bundle's authorities/, and comes into force with
the bundle, by an approved change.`,
		Example: "  bailment roots import --method aws --each aws-certificates/*.pem\n  bailment roots show\n  bailment roots check --within 720h",
	}
	c.AddCommand(a.rootsImport(), a.rootsMeasure(), a.rootsShow(), a.rootsCheck())
	return c
}

// rootView is one thing that is trusted.
type rootView struct {
	Authority string `json:"authority"`
	Method    string `json:"method"`
	Kind      string `json:"kind"`
	Subject   string `json:"subject"`
	// Fingerprint is the SHA-256 of a certificate's DER, of a key's SubjectPublicKeyInfo, or of an SSH key as ssh-keygen prints it.
	Fingerprint string `json:"fingerprint"`
	Key         string `json:"key"`
	NotBefore   string `json:"not_before,omitempty"`
	NotAfter    string `json:"not_after,omitempty"`
	State       string `json:"state"`
	Source      string `json:"source"`
	Imported    string `json:"imported"`

	ends time.Time
}

// Kinds and states of roots, as they are printed.
const (
	kindCertificate = "certificate"
	kindIssuer      = "issuer"
	kindIssuerKey   = "issuer-key"
	kindSSHCA       = "ssh-ca"
	kindSSHHost     = "ssh-host"
	kindEndorsement = "endorsement-key"

	stateOK      = "ok"
	stateSoon    = "ends-soon"
	stateExpired = "expired"
	stateEarly   = "not-yet-valid"
)

// rootViews is all that an authority trusts.
func rootViews(a authority.Authority, now time.Time, within time.Duration) []rootView {
	row := func(kind, subject, fingerprint, key string) rootView {
		return rootView{
			Authority: a.Name, Method: a.Method, Kind: kind, Subject: subject, Fingerprint: fingerprint, Key: key, State: stateOK,
			Source: a.Source, Imported: stamp(a.Imported),
		}
	}
	var out []rootView
	for _, c := range a.Certificates {
		v := row(kindCertificate, c.Subject.String(), attest.DigestText(sha256.Sum256(c.Raw)), keyText(c.PublicKey))
		v.NotBefore, v.NotAfter, v.ends, v.State = stamp(c.NotBefore), stamp(c.NotAfter), c.NotAfter, certificateState(c, now, within)
		out = append(out, v)
	}
	if a.Issuer != "" && a.Keys == nil {
		from := a.KeysURL
		if from == "" {
			from = "its discovery document"
		}
		out = append(out, row(kindIssuer, a.Issuer, "", "asked for at "+from))
	}
	if a.Keys != nil {
		for _, k := range a.Keys.Keys {
			// A key that could not be encoded would not have been read.
			thumb, err := attest.Thumbprint(k.Key)
			must(err)
			out = append(out, row(kindIssuerKey, a.Issuer+" key "+k.KeyID, attest.DigestText(thumb), keyText(k.Key)))
		}
	}
	for _, k := range a.SSHKeys {
		out = append(out, row(kindSSHCA, "-", ssh.FingerprintSHA256(k), k.Type()))
	}
	for _, h := range a.Hosts {
		out = append(out, row(kindSSHHost, h.Name, ssh.FingerprintSHA256(h.Key), h.Key.Type()))
	}
	for _, d := range a.EndorsementKeys {
		out = append(out, row(kindEndorsement, "-", "sha256:"+hex.EncodeToString(d[:]), "-"))
	}
	return out
}

func certificateState(c *x509.Certificate, now time.Time, within time.Duration) string {
	switch {
	case now.After(c.NotAfter):
		return stateExpired
	case now.Before(c.NotBefore):
		return stateEarly
	case c.NotAfter.Sub(now) < within:
		return stateSoon
	}
	return stateOK
}

func keyText(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return "unknown"
}

func (a *app) showRoots(views []rootView) error {
	if views == nil {
		views = []rootView{}
	}
	return a.show(views, func(t *rows) {
		if len(views) == 0 {
			return
		}
		t.add("AUTHORITY", "METHOD", "KIND", "STATE", "ENDS", "KEY", "FINGERPRINT", "SUBJECT", "SOURCE")
		for _, v := range views {
			t.add(v.Authority, v.Method, v.Kind, v.State, v.NotAfter, v.Key, v.Fingerprint, brief(v.Subject), brief(v.Source))
		}
	})
}

// bundleRoots is what the bundle of a directory trusts.
func bundleRoots(dir string, within time.Duration) ([]rootView, error) {
	_, prog, err := readBundle(dir)
	if err != nil {
		return nil, err
	}
	var out []rootView
	now := time.Now()
	for _, one := range prog.Authorities("") {
		out = append(out, rootViews(one, now, within)...)
	}
	return out, nil
}

func (a *app) rootsShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [DIR]", Short: "List what a bundle trusts, with expiry and source", Args: cobra.MaximumNArgs(1),
		Long: `Lists every root, issuer and key that the authorities of a bundle's directory name: for which
attestation method, its SHA-256 fingerprint, when it ends, and where it is from. Fingerprints are
of the whole certificate; of keys, of the SubjectPublicKeyInfo; of SSH keys, as ssh-keygen -l.`,
		Example: "  bailment roots show\n  bailment roots show ./env -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			views, err := bundleRoots(dirOf(args), endsSoon)
			if err != nil {
				return err
			}
			if err := a.showRoots(views); err != nil {
				return err
			}
			a.noteEnds(views)
			return nil
		},
	}
}

func (a *app) noteEnds(views []rootView) {
	for _, v := range views {
		switch v.State {
		case stateExpired:
			a.note("warning: %s: %s expired at %s: it proves nothing any more", v.Authority, brief(v.Subject), v.NotAfter)
		case stateSoon:
			a.note("warning: %s: %s ends at %s: bring its successor into the bundle beside it", v.Authority, brief(v.Subject), v.NotAfter)
		case stateEarly:
			a.note("warning: %s: %s is not valid before %s", v.Authority, brief(v.Subject), v.NotBefore)
		}
	}
}

func (a *app) rootsCheck() *cobra.Command {
	var within time.Duration
	c := &cobra.Command{
		Use: "check [DIR]", Short: "Fail when a root of a bundle has ended, or ends soon", Args: cobra.MaximumNArgs(1),
		Long: `Lists those roots of a bundle's directory that have ended, or end within the time given, and
then exits with 1. What it lists is to be replaced: the successor is imported beside it, into the
same authority or another, and it is taken out when nothing is signed by it any more.`,
		Example: "  bailment roots check\n  bailment roots check ./env --within 720h -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			if within < 0 {
				return problem.New(problem.ReasonInvalid, "--within must not be negative").WithFix("give a duration such as 720h")
			}
			views, err := bundleRoots(dirOf(args), within)
			if err != nil {
				return err
			}
			ending := slices.DeleteFunc(views, func(v rootView) bool { return v.State != stateExpired && v.State != stateSoon })
			slices.SortStableFunc(ending, func(a, b rootView) int { return a.ends.Compare(b.ends) })
			if err := a.showRoots(ending); err != nil || len(ending) == 0 {
				return err
			}
			return coded{1, problem.New(problem.ReasonExpired, "of the roots of this bundle, %d ended already or will within %s", len(ending), within).
				WithFix("get the successors from where these are from, import them with `bailment roots import`, and propose the bundle")}
		},
	}
	c.Flags().DurationVar(&within, "within", endsSoon, "how long before its end a root counts")
	return c
}

// attestedMethods are the methods that take authorities.
func attestedMethods(context.Context) []string {
	var out []string
	for _, m := range authority.Methods {
		if m.Authorities() {
			out = append(out, m.Name)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}
