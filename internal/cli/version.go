package cli

import (
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/release/own"
	"github.com/bailment/bailment/internal/sshsig"
)

func (a *app) versionCommand() *cobra.Command {
	var verify bool
	var signers []string
	c := &cobra.Command{
		Use: "version", Short: "Print the version of this binary, and whether it is a signed release", Args: cobra.NoArgs,
		Long: "Prints the version of this binary. `bailment status` prints the server's.\n\n" +
			"--verify looks for the manifest of its release (bailment.manifest and bailment.manifest.sig),\n" +
			"beside the executable or in " + own.Shared + ", and fails if this is not a signed release:\n" +
			"agent-unsigned without a manifest that the signature fits, agent-unknown if the manifest has\n" +
			"another binary.\n\n" +
			"Without --signer that shows only that nothing was damaged: whoever changes a binary can sign a\n" +
			"manifest with a key of theirs. And a binary that was changed can say what it likes: to be sure,\n" +
			"verify from outside, as docs/howto/verify-a-release.md says.",
		Example: "  bailment version\n  bailment version -o json\n  bailment version --verify --signer release.pub",
		RunE: func(*cobra.Command, []string) error {
			v := versionView{Version: thisVersion(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			if !verify && len(signers) == 0 {
				return a.show(v, func(t *rows) { t.line("%s", v.Version) })
			}
			var err error
			if v.Release, err = a.ownRelease(v.Version, signers); err != nil {
				return err
			}
			return a.show(v, func(t *rows) {
				t.add("version", v.Version)
				t.add("digest", v.Release.Digest)
				t.add("release", "signed")
				t.add("signer", v.Release.Signer)
				t.add("signer listed", v.Release.Listed)
				t.add("commit", v.Release.Commit)
				t.add("date", v.Release.Date)
			})
		},
	}
	c.Flags().BoolVar(&verify, "verify", false, "check that this binary is a signed release")
	c.Flags().StringArrayVar(&signers, "signer", nil, "with --verify: who may have signed: a public key, its file, or its fingerprint (repeatable)")
	return c
}

type versionView struct {
	Version  string       `json:"version"`
	Go       string       `json:"go"`
	Platform string       `json:"platform"`
	Release  *releaseView `json:"release,omitempty"`
}

// releaseView is the release that this binary is of.
type releaseView struct {
	Digest   string    `json:"digest"`
	Signer   string    `json:"signer"`
	Listed   bool      `json:"signer_listed"`
	Protocol int       `json:"protocol"`
	Commit   string    `json:"commit"`
	Date     time.Time `json:"date"`
}

// ownRelease verifies this binary. Without signers whoever signed is believed, which the view says.
func (a *app) ownRelease(version string, signers []string) (*releaseView, error) {
	s, err := own.Own(version)
	if err != nil {
		return nil, err
	}
	var policy release.Policy
	// The key in the signature is what a fingerprint is compared with, and what is believed if nobody is named.
	var claimed ssh.PublicKey
	if sig, err := sshsig.ParseSignature(s.Signature); err == nil {
		claimed = sig.Key
	}
	for _, spec := range signers {
		key, err := a.signerKey(spec, claimed)
		if err != nil {
			return nil, err
		}
		if key != nil {
			policy.Signers = append(policy.Signers, key)
		}
	}
	if len(signers) == 0 && claimed != nil {
		policy.Signers = append(policy.Signers, claimed)
	}
	verdict, err := release.Appraise(s, policy)
	if err != nil {
		if p := problem.As(err); p.Reason == problem.ReasonAgentUnsigned {
			return nil, problem.New(p.Reason, "this binary is not of a release that is signed as it must be: its manifest or signature is not there, doesn't fit, or is by somebody else").
				WithFix("install a release, with bailment.manifest and bailment.manifest.sig beside the binary, and name its signer with --signer")
		}
		return nil, err
	}
	m, err := release.Parse(s.Manifest)
	if err != nil {
		return nil, err
	}
	return &releaseView{
		Digest: attest.DigestText(verdict.Digest), Signer: verdict.Signer, Listed: len(signers) > 0,
		Protocol: m.Protocol, Commit: m.Commit, Date: m.Date,
	}, nil
}

// signerKey is the key that spec names; nil: a fingerprint, and claimed is of another key.
func (a *app) signerKey(spec string, claimed ssh.PublicKey) (ssh.PublicKey, error) {
	if strings.HasPrefix(spec, "SHA256:") {
		if claimed != nil && sshsig.Fingerprint(claimed) == spec {
			return claimed, nil
		}
		return nil, nil
	}
	if key, _, err := sshsig.ParseKey(spec); err == nil {
		return key, nil
	}
	text, err := a.readLimited(spec, sshsig.MaxKeyLine)
	if err != nil {
		return nil, err
	}
	key, _, err := sshsig.ParseKey(string(text))
	return key, err
}
