package cli

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/sshsig"
)

// proposed is a change as an honest server shows it: alice proposes a second bundle.
type proposed struct {
	t      *testing.T
	trust  *client.Trust
	base   *held
	signer ssh.Signer
	answer *v1.GetChangeResponse
	// rollback is what the change may be rolled back to; "": nothing.
	rollback string
}

func propose(t *testing.T) *proposed {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := policytest.Example(t, "payments")
	files["operators.yaml"] = fmt.Appendf(nil, "apiVersion: bailment/v1\nkind: Operators\nmetadata: {name: o}\nspec:\n  operators:\n    - name: alice\n      keys: [%q]\n      duties: [propose, approve]\n",
		strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))))
	p := &proposed{t: t, trust: &client.Trust{Environment: "payments-dev", Genesis: [32]byte{1}}, signer: signer}
	m, err := policy.BuildManifest(files, policy.Header{Environment: "payments-dev", Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.base = &held{manifest: m, files: files, generation: 1}
	next := maps.Clone(files)
	next["NOTES.md"] = []byte("new\n")
	p.show(next, p.header())
	return p
}

func (p *proposed) header() policy.Header {
	return policy.Header{Environment: "payments-dev", Genesis: p.trust.Genesis, Version: 2, Previous: p.base.manifest.Digest()}
}

func (p *proposed) text(manifest string) ceremony.Change {
	return ceremony.Change{
		Scope: ceremony.Scope{Environment: "payments-dev", Genesis: p.trust.Genesis}, Action: "bundle", Base: p.base.manifest.Digest().String(),
		New: manifest, Rollback: p.rollback, Role: ceremony.Proposer, Person: "alice", Nonce: strings.Repeat("0", 32), Expires: time.Unix(2e9, 0), Reason: "why",
	}
}

// show makes the answer about a bundle, properly signed.
func (p *proposed) show(files policy.Files, h policy.Header) {
	p.t.Helper()
	m, err := policy.BuildManifest(files, h)
	if err != nil {
		p.t.Fatal(err)
	}
	if p.rollback, err = policy.RollbackDigest(m, p.base.files, files, nil); err != nil {
		p.rollback = ""
	}
	text := p.text(m.Digest().String()).Text()
	p.answer = &v1.GetChangeResponse{
		Change: &v1.ChangeInfo{
			Change: 9, Action: "bundle", State: "proposed", Manifest: m.Digest().String(), Base: p.base.manifest.Digest().String(),
			Proposer: "/human/alice", Expires: timestamppb.New(time.Unix(2e9, 0)), Reason: "why",
		},
		Manifest: string(m.Text()), ProposalText: text, ProposalSignature: p.sign(text),
	}
	for _, f := range m.Files() {
		p.answer.Files = append(p.answer.Files, files[f.Path])
	}
}

func (p *proposed) sign(text string) *v1.Signature {
	p.t.Helper()
	armored, err := sshsig.Sign(p.signer, ceremony.NamespaceChange, []byte(text))
	if err != nil {
		p.t.Fatal(err)
	}
	return &v1.Signature{Person: "alice", Sshsig: string(armored)}
}

func (p *proposed) review() (*review, error) {
	v := &review{proposal: p.answer, base: p.base}
	return v, v.compute(p.trust, 0, "bob")
}

func TestReview(t *testing.T) {
	v, err := propose(t).review()
	if err != nil {
		t.Fatal(err)
	}
	if len(v.diff) != 1 || v.diff[0].path != "NOTES.md" || v.diff[0].how != "added" || v.diff[0].before != nil || string(v.diff[0].after) != "new\n" || v.text.Person != "bob" || v.text.Role != ceremony.Approver || v.text.Number != 9 {
		t.Errorf("%+v %+v", v.diff, v.text)
	}
}

// A server that shows one thing and would have another approved is caught before anything is signed.
func TestReviewOfALyingServer(t *testing.T) {
	for name, lie := range map[string]func(*proposed){
		"another file's content": func(p *proposed) { p.answer.Files[0] = []byte("other\n") },
		"a file left out":        func(p *proposed) { p.answer.Files = p.answer.Files[1:] },
		"another digest":         func(p *proposed) { p.answer.Change.Manifest = p.base.manifest.Digest().String() },
		"another manifest":       func(p *proposed) { p.answer.Manifest = string(p.base.manifest.Text()) },
		"no manifest":            func(p *proposed) { p.answer.Manifest = "" },
		"another action":         func(p *proposed) { p.answer.Change.Action = "hold.lift" },
		"another target":         func(p *proposed) { p.answer.Change.Target = "everything" },
		"another way back": func(p *proposed) {
			p.rollback = p.base.manifest.Digest().String()
			p.answer.ProposalText = p.text(p.answer.Change.Manifest).Text()
			p.answer.ProposalSignature = p.sign(p.answer.ProposalText)
		},
		"containment of what is not changed": func(p *proposed) {
			text := p.text(p.answer.Change.Manifest)
			text.Containment = []string{"operators.yaml"}
			p.answer.ProposalText = text.Text()
			p.answer.ProposalSignature = p.sign(p.answer.ProposalText)
		},
		"another reason":   func(p *proposed) { p.answer.Change.Reason = "harmless" },
		"a longer expiry":  func(p *proposed) { p.answer.Change.Expires.Seconds++ },
		"another proposer": func(p *proposed) { p.answer.Change.Proposer = "/human/carol" },
		"no proposal text": func(p *proposed) { p.answer.ProposalText = "" },
		"no signature":     func(p *proposed) { p.answer.ProposalSignature = nil },
		"a stranger's signature": func(p *proposed) {
			stranger := propose(t)
			p.answer.ProposalSignature = stranger.sign(p.answer.ProposalText)
		},
		"another environment's change": func(p *proposed) {
			other := p.header()
			other.Genesis[0]++
			p.show(p.base.files, other)
		},
		"a change on another base": func(p *proposed) {
			h := p.header()
			h.Previous[0]++
			p.show(p.base.files, h)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := propose(t)
			p.answer = proto.Clone(p.answer).(*v1.GetChangeResponse)
			lie(p)
			_, err := p.review()
			if err == nil || !problem.Is(err, problem.ReasonNotAuthentic) && !problem.Is(err, problem.ReasonDuty) {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// What a newer release made is refused as that, with what this one doesn't know, and not shown without it: in what is proposed, in what that
// follows, in what was signed.
func TestReviewOfANewerRelease(t *testing.T) {
	// later adds a field to a bundle's environment.
	later := func(files policy.Files) policy.Files {
		out := maps.Clone(files)
		out["environment.yaml"] = []byte(strings.Replace(string(files["environment.yaml"]), "\nspec:\n", "\nspec:\n  quantum: {safe: true}\n", 1))
		return out
	}
	again := func(p *proposed, text string) {
		p.answer.ProposalText, p.answer.ProposalSignature = text, p.sign(text)
	}
	for name, c := range map[string]struct {
		newer  func(*proposed)
		reason problem.Reason
		says   []string
	}{
		"a field of the bundle": {
			func(p *proposed) { p.show(later(p.base.files), p.header()) }, problem.ReasonBundleInvalid, []string{"environment.yaml:", `"quantum"`},
		},
		"a field of the bundle that it follows": {
			func(p *proposed) {
				now := p.base.files
				m, err := policy.BuildManifest(later(now), policy.Header{Environment: "payments-dev", Version: 1})
				if err != nil {
					p.t.Fatal(err)
				}
				p.base = &held{manifest: m, files: later(now), generation: 1}
				p.show(now, p.header())
			},
			problem.ReasonUnknownVersion,
			[]string{"environment.yaml:", `"quantum"`, "follows"},
		},
		"a version of the manifest": {
			func(p *proposed) { p.answer.Manifest = strings.Replace(p.answer.Manifest, " v1\n", " v7\n", 1) }, problem.ReasonUnknownVersion, []string{"manifest"},
		},
		"a version of the signed text": {
			func(p *proposed) {
				again(p, strings.Replace(p.answer.ProposalText, "change v2\n", "change v7\nwitness -\n", 1))
			},
			problem.ReasonUnknownVersion,
			[]string{"v7"},
		},
		"an act": {
			func(p *proposed) {
				text := p.text("")
				text.Action, text.Target, text.New, text.Rollback = "secret.teleport", "db/x", "", ""
				p.answer.Change.Action, p.answer.Change.Target, p.answer.Change.Manifest = "secret.teleport", "db/x", ""
				p.answer.Manifest, p.answer.Files = "", nil
				again(p, text.Text())
			},
			problem.ReasonUnknownVersion,
			[]string{"secret.teleport"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := propose(t)
			before := p.answer.Manifest + p.answer.ProposalText
			c.newer(p)
			if before == p.answer.Manifest+p.answer.ProposalText {
				t.Fatal("it changes nothing")
			}
			_, err := p.review()
			if !problem.Is(err, c.reason) {
				t.Fatalf("got %v", err)
			}
			for _, s := range c.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("it does not say %q: %v", s, err)
				}
			}
			if fix := problem.As(err).WayOut(); c.reason == problem.ReasonUnknownVersion && !strings.Contains(fix, "release") && !strings.Contains(fix, "upgrade") {
				t.Errorf("the way out is %q", fix)
			}
		})
	}
}

// What was signed is written for ssh-keygen only if it is about the change: a signature under something else is good as well, and a name may be
// more than a name where it becomes a word of a command.
func TestExportOfOtherTexts(t *testing.T) {
	for name, c := range map[string]struct {
		lie func(*proposed, *signedChange)
		ok  bool
	}{
		"what is so": {func(*proposed, *signedChange) {}, true},
		"an approval of another change": {func(p *proposed, s *signedChange) {
			s.approvals[0].text = p.approval(10).Text()
		}, false},
		"an approval of another bundle": {func(p *proposed, s *signedChange) {
			c := p.approval(9)
			c.New = c.Base
			s.approvals[0].text = c.Text()
		}, false},
		"an approval of another person": {func(_ *proposed, s *signedChange) { s.approvals[0].person = "carol" }, false},
		"a proposal as an approval":     {func(_ *proposed, s *signedChange) { s.approvals[0].text = s.proposal.text }, false},
		"an approval as a proposal":     {func(_ *proposed, s *signedChange) { s.proposal.text = s.approvals[0].text }, false},
		"a proposal of another bundle": {func(p *proposed, s *signedChange) {
			s.proposal.text = p.text(p.base.manifest.Digest().String()).Text()
		}, false},
		"no proposal":         {func(_ *proposed, s *signedChange) { s.proposal.text = "" }, false},
		"a command, approved": {func(_ *proposed, s *signedChange) { s.approvals[0].person = "bob; true" }, false},
		"a command, proposed": {func(_ *proposed, s *signedChange) { s.proposal.person = "alice; true" }, false},
		"a command, manifest": {func(_ *proposed, s *signedChange) { s.manifest.person = "$(true)" }, false},
		"a path":              {func(_ *proposed, s *signedChange) { s.approvals[0].person = "../bob" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := propose(t)
			v, err := p.review()
			if err != nil {
				t.Fatal(err)
			}
			s := v.signed()
			s.approvals = []signedText{{"bob", p.approval(9).Text(), "a signature"}}
			c.lie(p, &s)
			_, _, err = s.texts(v, "out")
			if (err == nil) != c.ok || err != nil && !problem.Is(err, problem.ReasonNotAuthentic) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// approval is bob's approval of a change about the bundle.
func (p *proposed) approval(number uint64) ceremony.Change {
	c := p.text(p.answer.Change.Manifest)
	c.Role, c.Person, c.Number, c.Nonce = ceremony.Approver, "bob", number, strings.Repeat("1", 32)
	return c
}

func TestVerifyCommandQuotes(t *testing.T) {
	got := verifyCommand("it's $(x)", "alice", "n", "change.txt")
	want := `ssh-keygen -Y verify -f 'it'\''s $(x)/allowed_signers' -I alice -n n -s 'it'\''s $(x)/change.txt.sig' < 'it'\''s $(x)/change.txt'`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}
