package release

import (
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// Statement is what an agent says of itself. It is small: at most MaxManifest, sshsig.MaxSignature and a hundred bytes.
type Statement struct {
	// Version is what the binary was built as. It is a release's version only for released builds.
	Version  string
	Platform string   // GOOS/GOARCH
	Digest   [32]byte // SHA-256 of the running executable
	// Manifest and Signature are its release's; nil: there is none.
	Manifest  []byte
	Signature []byte
}

// Level is how much an environment asks of agents. The zero value asks the most that can be asked without hardware.
type Level uint8

const (
	// LevelSigned: a listed signer must vouch for the digest that the agent claims.
	LevelSigned Level = iota
	// LevelMeasured: besides, somebody else must have measured that digest. Appraise can't know; the caller compares.
	LevelMeasured
	// LevelAny: unsigned builds may run. It is for environments of class development.
	LevelAny
)

func (l Level) String() string {
	switch l {
	case LevelSigned:
		return "signed"
	case LevelMeasured:
		return "measured"
	case LevelAny:
		return "any"
	}
	return "unknown"
}

// Policy is what an environment asks of agents.
type Policy struct {
	Signers  []ssh.PublicKey
	Minimum  Version // zero: none
	Required Level
}

// Verdict is what came out of a statement.
type Verdict struct {
	// Version is the manifest's if Signed; else what the agent claims, zero if that is no version.
	Version Version
	Digest  [32]byte // as claimed
	Signed  bool     // a listed signer vouches for Digest on the agent's platform, as this version
	Signer  string   // the signer's fingerprint ("SHA256:…") if Signed
}

// Appraise judges a statement. A refusal is one of these, in this order, each with its way out:
//
//	agent-unsigned   no manifest, or none that a listed signer signed
//	agent-unknown    a signed manifest, which doesn't name this digest for this platform as this version's program
//	agent-outdated   below the minimum
//
// Where unsigned agents may run (LevelAny) only agent-outdated is left, and an agent whose version can't be compared with a minimum is
// agent-unsigned. The verdict is zero beside a refusal. Its errors show nothing of the statement but the version of a signed manifest.
func Appraise(s Statement, p Policy) (Verdict, error) {
	v, err := appraise(s, p.Signers)
	if err != nil {
		if p.Required != LevelAny {
			return Verdict{}, err
		}
		v = Verdict{Digest: s.Digest}
		if claimed, err := ParseVersion(s.Version); err == nil {
			v.Version = claimed
		}
	}
	switch {
	case p.Minimum.IsZero():
	case !v.Signed && v.Version.IsZero():
		return Verdict{}, problem.New(problem.ReasonAgentUnsigned,
			"the agent is not a release, and its version can't be compared with the minimum %s", p.Minimum)
	case v.Version.Compare(p.Minimum) < 0:
		return Verdict{}, problem.New(problem.ReasonAgentOutdated, "the agent is version %s, and the minimum is %s", v.Version, p.Minimum)
	}
	return v, nil
}

// appraise gives the verdict on what must be signed.
func appraise(s Statement, signers []ssh.PublicKey) (Verdict, error) {
	if len(s.Manifest) == 0 || len(s.Signature) == 0 {
		return Verdict{}, problem.New(problem.ReasonAgentUnsigned, "the agent shows no signed release manifest")
	}
	if len(signers) == 0 {
		return Verdict{}, problem.New(problem.ReasonAgentUnsigned, "the bundle names no signer of releases")
	}
	m, key, err := Verify(s.Manifest, s.Signature, signers)
	if err != nil {
		says := "the agent's release manifest is not signed by a listed signer of releases"
		if problem.Is(err, problem.ReasonUnknownVersion) {
			says = "the agent's release manifest is in a format that this server doesn't know"
		}
		p := problem.New(problem.ReasonAgentUnsigned, "%s", says)
		p.Err = err // it may quote the signature's own words, so it stays inside
		return Verdict{}, p
	}
	if _, ok := m.Program(s.Platform, s.Digest); !ok {
		return Verdict{}, problem.New(problem.ReasonAgentUnknown, "the agent's binary is not the one that release %s has for its platform", m.Version)
	}
	if s.Version != m.Version.String() {
		return Verdict{}, problem.New(problem.ReasonAgentUnknown, "the agent says that it is another version than release %s, whose manifest it shows", m.Version)
	}
	return Verdict{Version: m.Version, Digest: s.Digest, Signed: true, Signer: sshsig.Fingerprint(key)}, nil
}
