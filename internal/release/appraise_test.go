package release_test

import (
	"bytes"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

func version(t testing.TB, s string) release.Version {
	t.Helper()
	v, err := release.ParseVersion(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// released is a statement of the program of manifest() on linux/amd64.
func released(t testing.TB, by ssh.Signer) release.Statement {
	t.Helper()
	b := text(t, manifest())
	sig, err := sshsig.Sign(by, release.Namespace, b)
	if err != nil {
		t.Fatal(err)
	}
	return release.Statement{Version: "1.4.0", Platform: "linux/amd64", Digest: digest("amd64"), Manifest: b, Signature: sig}
}

func TestAppraise(t *testing.T) {
	mine := signer(t, "release")
	listed := []ssh.PublicKey{mine.PublicKey()}
	signed := release.Verdict{Version: version(t, "1.4.0"), Digest: digest("amd64"), Signed: true, Signer: sshsig.Fingerprint(mine.PublicKey())}
	unsigned := release.Verdict{Version: version(t, "1.4.0"), Digest: digest("amd64")}
	minimum := func(s string) release.Policy { return release.Policy{Signers: listed, Minimum: version(t, s)} }
	anyOf := func(p release.Policy) release.Policy { p.Required = release.LevelAny; return p }

	for name, c := range map[string]struct {
		change func(*release.Statement)
		policy release.Policy
		want   release.Verdict
		reason problem.Reason
	}{
		"signed":                        {nil, release.Policy{Signers: listed}, signed, ""},
		"the minimum itself":            {nil, minimum("1.4.0"), signed, ""},
		"above the minimum":             {nil, minimum("1.3.9"), signed, ""},
		"above a candidate":             {nil, minimum("1.4.0-rc.1"), signed, ""},
		"to be measured":                {nil, release.Policy{Signers: listed, Required: release.LevelMeasured}, signed, ""},
		"signed where nothing is asked": {nil, anyOf(minimum("1.4.0")), signed, ""},
		"below the minimum":             {nil, minimum("1.4.1"), release.Verdict{}, problem.ReasonAgentOutdated},
		"below, where nothing is asked": {nil, anyOf(minimum("1.4.1")), release.Verdict{}, problem.ReasonAgentOutdated},
		"no manifest":                   {func(s *release.Statement) { s.Manifest = nil }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnsigned},
		"no signature":                  {func(s *release.Statement) { s.Signature = nil }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnsigned},
		"nobody is listed":              {nil, release.Policy{}, release.Verdict{}, problem.ReasonAgentUnsigned},
		"another is listed":             {nil, release.Policy{Signers: []ssh.PublicKey{signer(t, "x").PublicKey()}}, release.Verdict{}, problem.ReasonAgentUnsigned},
		"signed by a stranger":          {func(s *release.Statement) { *s = released(t, signer(t, "stranger")) }, release.Policy{Signers: listed}, release.Verdict{}, problem.ReasonAgentUnsigned},
		"one bit of the signature": {
			func(s *release.Statement) { s.Signature = flipped(s.Signature, len(s.Signature)/2) },
			release.Policy{Signers: listed},
			release.Verdict{},
			problem.ReasonAgentUnsigned,
		},
		"one bit of the manifest": {func(s *release.Statement) { s.Manifest = flipped(s.Manifest, 30) }, release.Policy{Signers: listed}, release.Verdict{}, problem.ReasonAgentUnsigned},
		"one bit of the binary":   {func(s *release.Statement) { s.Digest[5] ^= 1 }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"the other platform's":    {func(s *release.Statement) { s.Digest = digest("arm64") }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"on another platform":     {func(s *release.Statement) { s.Platform = "linux/arm64" }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"on any platform":         {func(s *release.Statement) { s.Platform = "any" }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"another file of it":      {func(s *release.Statement) { s.Platform, s.Digest = "any", digest("license") }, minimum("1.4.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"says it's newer":         {func(s *release.Statement) { s.Version = "9.0.0" }, minimum("1.5.0"), release.Verdict{}, problem.ReasonAgentUnknown},
		"unknown before outdated": {func(s *release.Statement) { s.Digest[5] ^= 1 }, minimum("2.0.0"), release.Verdict{}, problem.ReasonAgentUnknown},

		"unsigned where it may be":   {func(s *release.Statement) { s.Manifest = nil }, anyOf(minimum("1.4.0")), unsigned, ""},
		"a stranger's where it may":  {func(s *release.Statement) { *s = released(t, signer(t, "stranger")) }, anyOf(minimum("1.4.0")), unsigned, ""},
		"unlisted where it may":      {nil, anyOf(release.Policy{}), unsigned, ""},
		"no version, no minimum":     {func(s *release.Statement) { s.Manifest, s.Version = nil, "ee0356d-dirty" }, anyOf(release.Policy{}), release.Verdict{Digest: digest("amd64")}, ""},
		"no version, but a minimum":  {func(s *release.Statement) { s.Manifest, s.Version = nil, "ee0356d-dirty" }, anyOf(minimum("0.1.0")), release.Verdict{}, problem.ReasonAgentUnsigned},
		"unsigned below the minimum": {func(s *release.Statement) { s.Manifest, s.Version = nil, "1.3.0" }, anyOf(minimum("1.4.0")), release.Verdict{}, problem.ReasonAgentOutdated},
	} {
		s := released(t, mine)
		if c.change != nil {
			c.change(&s)
		}
		got, err := release.Appraise(s, c.policy)
		if got != c.want || (c.reason == "") != (err == nil) || err != nil && !problem.Is(err, c.reason) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// A manifest of a later format that a listed signer signed is not called a forgery.
func TestAppraiseLaterFormat(t *testing.T) {
	mine := signer(t, "release")
	s := released(t, mine)
	s.Manifest = bytes.Replace(s.Manifest, []byte("release v1"), []byte("release v2"), 1)
	sig, err := sshsig.Sign(mine, release.Namespace, s.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	s.Signature = sig
	_, err = release.Appraise(s, release.Policy{Signers: []ssh.PublicKey{mine.PublicKey()}})
	if !problem.Is(err, problem.ReasonAgentUnsigned) || !bytes.Contains([]byte(err.Error()), []byte("format")) {
		t.Fatal(err)
	}
}

func TestLevelsHaveNames(t *testing.T) {
	for l, want := range map[release.Level]string{release.LevelSigned: "signed", release.LevelMeasured: "measured", release.LevelAny: "any", 9: "unknown"} {
		if l.String() != want {
			t.Errorf("%d: %s", l, l)
		}
	}
	// The zero policy must not let anybody in.
	if _, err := release.Appraise(released(t, signer(t, "release")), release.Policy{}); !problem.Is(err, problem.ReasonAgentUnsigned) {
		t.Error(err)
	}
}

func flipped(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}
