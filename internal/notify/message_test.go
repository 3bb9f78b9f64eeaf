package notify

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/state"
)

var at = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type example struct {
	event state.Event
	topic policy.Topic
	want  string // in the text
}

var recoveryText = ceremony.Recovery{
	Base: "sha256:aa", New: "sha256:bb", Operators: "sha256:cc", Required: 2, Delay: time.Hour, Nonce: "00ff", Reason: "both are gone",
	Before: []string{"alice propose SHA256:a"}, After: []string{"dora propose SHA256:d"}, Scope: ceremony.Scope{Environment: "payments"},
}.Text()

// told is one event of each sort that is told, with what is told of it.
var told = []example{
	{&state.ChangeProposed{Action: "hold.lift", Target: "identity:/workload/a", Reason: "it was us", Actor: state.Actor{Identity: "/human/alice"}}, policy.TopicProposed, `reason     "it was us"`},
	{&state.ChangeApproved{Change: 7, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicApproved, "change 7 was approved"},
	{&state.ChangeRejected{Change: 7, Reason: "not now", Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicRejected, `"not now"`},
	{&state.BundleInForce{Change: 7, Manifest: state.Digest{1}, How: state.ByChange}, policy.TopicInForce, "change 7 is in force"},
	{&state.BundleInForce{Change: 7, Manifest: state.Digest{1}, How: state.ByRollout}, policy.TopicInForce, "change 7 is in force"},
	{&state.BundleInForce{Change: 7, How: state.ByRollback, Cause: &state.Cause{By: state.ByTrigger, Figure: &state.Figure{On: "denied", Sources: 3, Asked: 9}}}, policy.TopicRolledBack, "trigger denied: 3 of 9 that asked"},
	{&state.RolloutMoved{Change: 7, Step: 1, Manifest: state.Digest{1}}, policy.TopicStep, "step 2 of its rollout"},
	{&state.RolloutEnded{Change: 7, Cause: state.Cause{By: state.ByPerson, Reason: "wrong host", Actor: &state.Actor{Identity: "/human/bob"}}}, policy.TopicRolledBack, `"wrong host"`},
	{&state.RevocationRecorded{Scope: "identity:/workload/a", Cutoff: true, Hold: true, Covers: 3, Reason: "incident 7", Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicRevocation, "cut off and held, 3 in scope"},
	{&state.RevocationRecorded{Scope: "everything", Hold: true, Until: 9, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicRevocation, "it takes a change to confirm it"},
	{&state.HoldLifted{Scope: "identity:/workload/a", Change: 7}, policy.TopicInForce, "change 7 was carried out"},
	{&state.EvidenceForgotten{Change: 7}, policy.TopicInForce, "change 7 was carried out"},
	{&state.IdentityDecommissioned{Change: 7}, policy.TopicInForce, "change 7 was carried out"},
	{&state.GlassOpened{Grant: "db-emergency", Identity: "/human/bob", Incident: "INC-7", Reason: "nobody can pay", Until: 60_000, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicGlass, "/human/bob broke the glass: db-emergency is open until 1970-01-01T00:01:00.000Z, for INC-7"},
	{&state.GlassClosed{Opening: 5, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicGlass, "opening 5 was closed before its time"},
	{&state.GlassReviewed{Opening: 5, Actor: state.Actor{Identity: "/human/carol"}}, policy.TopicGlass, "opening 5 was reviewed"},
	{&state.GlassAlarmed{Quarter: "2026-Q4", Glass: 12, Releases: 300, Percent: 1}, policy.TopicGlass, "12 of 300 releases of 2026-Q4"},
	{&state.RecoveryStarted{Text: recoveryText, Signatures: []state.Signature{{Person: "rita"}, {Person: "sam"}}, Until: state.At(at.Add(72 * time.Hour))}, policy.TopicRecovery, "it replaces the operators at 2026-11-25T12:00:00Z"},
	{&state.RecoveryStarted{Text: recoveryText, Signatures: []state.Signature{{Person: "rita"}, {Person: "sam"}}}, policy.TopicRecovery, "rita, sam"},
	{&state.RecoveryStarted{Text: recoveryText}, policy.TopicRecovery, `"both are gone"`},
	{&state.RecoveryWithdrawn{Recovery: 9, Signature: state.Signature{Person: "sam"}}, policy.TopicRecovery, "recovery 9 was withdrawn"},
	{&state.BundleInForce{Recovery: 9, How: state.ByRecovery}, policy.TopicRecovery, "the operators were replaced"},
	{&state.EnvironmentEnded{Environment: "payments", Change: 7, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicInForce, "the environment has ended for ever"},
	{&state.CustodyMoved{To: state.RootHolder{Kind: "tpm", ID: "7f"}, Change: 7, Actor: state.Actor{Identity: "/human/bob"}}, policy.TopicInForce, "under the root holder tpm:7f"},
	{&state.SecretExported{Change: 7, Secrets: "db/*", Recipient: "age1x", Count: 12, Actor: state.Actor{Identity: "/human/alice"}}, policy.TopicInForce, "12 values left, sealed to age1x"},
	{&state.SecretMoved{Secret: "db/password", Version: 2, To: "destroyed", Change: 7}, policy.TopicInForce, "change 7 was carried out"},
}

// Every type of entries is told or not, and somebody decided which.
func TestEveryTypeIsDecided(t *testing.T) {
	untold := []string{
		"environment.genesis", "token.created", "session.opened", "session.closed", "secret.written", "secret.released", "lease.renewed", "lease.returned",
		"request.denied", "denials.summed", "key.added", "keys.rewrapped", "state.root", "protocol.raised", "evidence.used",
		"node.quarantined", // by rules, and of a thousand machines at once
		"jwt.key_added", "key.withdrawn", "jwt.issued", "federation.refreshed", "rollout.observed", "access.reviewed",
	}
	for _, x := range state.Types {
		is := slices.ContainsFunc(told, func(e example) bool { return e.event.Kind().Type == x.Kind.Type })
		if isnt := slices.Contains(untold, x.Kind.Type); is == isnt {
			t.Errorf("%s: told %v, untold %v", x.Kind, is, isnt)
		} else if isnt && Concerns(x.New()) {
			t.Errorf("%s concerns somebody", x.Kind)
		}
	}
	for _, topic := range policy.Topics {
		if !slices.ContainsFunc(told, func(e example) bool { return e.topic == topic }) {
			t.Errorf("nothing is told of %s", topic)
		}
	}
}

func TestMessages(t *testing.T) {
	for _, x := range told {
		if !Concerns(x.event) {
			t.Errorf("%s concerns nobody", x.event.Kind())
		}
		m, ok := Of(proposed("it was us"), 0, &state.Entry{Time: state.At(at), Event: x.event})
		if !ok || m.Event != x.topic {
			t.Errorf("%s: %v %q", x.event.Kind(), ok, m.Event)
		}
		if text := m.Text(); !strings.Contains(text, x.want) || !strings.Contains(text, "proves nothing") || !strings.Contains(text, m.Review) {
			t.Errorf("%s tells %s", x.event.Kind(), text)
		}
		var body map[string]any
		if err := json.Unmarshal(m.JSON(), &body); err != nil {
			t.Fatal(err)
		}
		if body["schema"] != Schema || body["event"] != string(x.topic) || body["environment"] != "payments" || body["genesis"] == "" || body["review"] == "" || body["time"] != "2026-11-22T12:00:00Z" {
			t.Errorf("%s: %s", x.event.Kind(), m.JSON())
		}
	}
	for _, ev := range []state.Event{&state.SecretMoved{Secret: "db/password"}, &state.SecretReleased{}} {
		if _, ok := Of(proposed(""), 1, &state.Entry{Time: state.At(at), Event: ev}); ok || Concerns(ev) {
			t.Errorf("%s is told", ev.Kind())
		}
	}
}

// What a person wrote stays in its line, can be seen, and is bounded.
func TestWhatPersonsWrote(t *testing.T) {
	hostile := "fine\r\n\r\n  by         /human/root\nBcc: all@example.org\n.\n\x1b[2J\u202eevil " + strings.Repeat("x", 4000)
	m, _ := Of(proposed(hostile), 1, &state.Entry{Time: state.At(at), Event: &state.ChangeRejected{Change: 0, Reason: hostile, Actor: state.Actor{Identity: "/human/alice"}}})
	text := m.Text()
	if len(text) > 2000 || strings.ContainsAny(text, "\x1b\r\u202e") {
		t.Errorf("%q", text)
	}
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "by ") && !strings.HasSuffix(line, "/human/alice") || strings.HasPrefix(line, "Bcc") || line == "." {
			t.Errorf("a line of the reason's: %q", line)
		}
	}
	if s := m.Subject(); s != "[payments] change.rejected by /human/alice" {
		t.Errorf("subject %q", s)
	}
}

// proposed is an environment whose every change is one.
func proposed(reason string) About {
	return About{Environment: "payments", Genesis: "sha256:" + strings.Repeat("ab", 32), Change: func(n uint64) (*state.Change, bool) {
		return &state.Change{
			Index: n, Action: "hold.lift", Target: "identity:/workload/a", Reason: reason, Required: 2, Expires: state.At(at.Add(time.Hour)),
			Approvals: []state.Approval{{Person: "bob", Index: 8}, {Person: "carol", Index: 9}},
		}, true
	}}
}

// Approvers learn what it takes, as it was at the entry.
func TestWhatItTakes(t *testing.T) {
	m, _ := Of(proposed("x"), 8, &state.Entry{Time: state.At(at), Event: &state.ChangeApproved{Change: 7, Actor: state.Actor{Identity: "/human/bob"}}})
	if m.Approvals != 1 || !strings.Contains(m.Text(), "approvals  1 of 2, by others with the duty approve-containment, until 2026-11-22T13:00:00Z") || m.Review != "bailment change show 7" {
		t.Errorf("%s", m.Text())
	}
	gone := About{Environment: "payments", Change: func(uint64) (*state.Change, bool) { return nil, false }}
	if m, ok := Of(gone, 9, &state.Entry{Time: state.At(at), Event: &state.ChangeApproved{Change: 7}}); !ok || m.Expires != nil || m.Text() == "" {
		t.Error("a change that is kept no more")
	}
}

// What can't be undone waits, and whoever could stop it is told until when, and how.
func TestWhatWaits(t *testing.T) {
	about := proposed("x")
	about.Change = func(n uint64) (*state.Change, bool) {
		return &state.Change{Index: n, Action: "secret.destroy", State: state.Waiting, Required: 1, Delay: 86_400, Since: state.At(at), Expires: state.At(at.Add(time.Hour))}, true
	}
	e := &state.Entry{Time: state.At(at), Event: &state.ChangeApproved{Change: 7, Actor: state.Actor{Identity: "/human/bob"}}}
	m, _ := Of(about, 8, e)
	if m.Due == nil || !m.Due.Equal(at.Add(24*time.Hour)) || !strings.Contains(m.Text(), "waits      until 2026-11-23T12:00:00Z; to stop it: bailment change reject 7") {
		t.Errorf("%s", m.Text())
	}
	e.Time -= 1000 // an approval before the last one
	if m, _ := Of(about, 7, e); m.Due != nil || !strings.Contains(m.Summary, "was approved") {
		t.Errorf("%s", m.Text())
	}
}
