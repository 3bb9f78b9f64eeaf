package state

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/bailment/bailment/internal/ceremony"
)

// review is a review of some lines, signed now.
func review(f *feeder, from, n int) ceremony.Review {
	r := ceremony.Review{
		Scope: ceremony.Scope{Environment: "e"}, Bundle: f.s.Bundle.String(), Person: "alice", Time: f.now.Time().Truncate(time.Second),
		Nonce: fmt.Sprintf("%032x", f.s.Next),
	}
	for i := range n {
		r.Lines = append(r.Lines, ceremony.ReviewLine{
			Decision: ceremony.Keep, Grant: fmt.Sprintf("g%07d", from+i), Identity: "/node/*", Secret: "*", LastUsed: ceremony.NeverUsed,
		})
	}
	return r
}

func reviewed(f *feeder, from int) *AccessReviewed {
	return &AccessReviewed{Text: review(f, from, 1).Text(), Actor: Actor{Identity: "/human/alice"}}
}

func TestReviews(t *testing.T) {
	f := newFeeder(t, 1)
	if err := f.apply(reviewed(f, 0)); err == nil {
		t.Error("a review was entered before its protocol was raised")
	}
	if f.s.UsesSince(f.now) != 0 {
		t.Error("uses are remembered before the protocol that has them")
	}
	f.must(&ProtocolRaised{Version: protocolRollout})
	since := f.now
	first := f.must(reviewed(f, 0))
	f.now += 5000
	r := review(f, 0, 2)
	r.Lines[0].Decision, r.Person = ceremony.Remove, "bob"
	second := f.must(&AccessReviewed{Text: r.Text()})
	row := func(n int) *Reviewed {
		x, _ := f.s.Reviewed.Get(ReviewKey(fmt.Sprintf("g%07d", n), "/node/*", "*"))
		return x
	}
	if x := row(0); first == second || x == nil || *x != (Reviewed{"remove", "bob", second, f.now}) || row(1).Decision != "keep" || f.s.Reviewed.Len() != 2 {
		t.Errorf("remembered %+v, %+v", row(0), row(1))
	}
	if again, err := Restore(snapshotOf(t, f.s)); err != nil || again.ServesSince != since || !bytes.Equal(snapshotOf(t, again), snapshotOf(t, f.s)) {
		t.Errorf("a snapshot lost something: %v", err)
	}
	for what, edit := range map[string]func(*ceremony.Review){
		"a nonce again":     func(x *ceremony.Review) { x.Nonce = r.Nonce },
		"another bundle":    func(x *ceremony.Review) { x.Bundle = Digest{9}.String() },
		"signed long ago":   func(x *ceremony.Review) { x.Time = x.Time.Add(-ReviewLife - time.Second) },
		"signed in advance": func(x *ceremony.Review) { x.Time = x.Time.Add(ReviewAhead + time.Minute) },
		"no lines":          func(x *ceremony.Review) { x.Lines = nil },
	} {
		x := review(f, 7, 1)
		edit(&x)
		before := snapshotOf(t, f.s)
		if err := f.apply(&AccessReviewed{Text: x.Text()}); err == nil || !bytes.Equal(before, snapshotOf(t, f.s)) {
			t.Errorf("%s: entered, or changed the state: %v", what, err)
		}
	}
	f.now += keepReviewed - 5000
	for range 3 {
		f.must(&DenialsSummed{})
	}
	if f.s.Reviewed.Len() != 2 {
		t.Fatalf("%d lines before the end of their time", f.s.Reviewed.Len())
	}
	f.now += 5000
	for range 3 {
		f.must(&DenialsSummed{})
	}
	if f.s.Reviewed.Len() != 0 || f.s.UsesSince(f.now) != f.now-keepServed {
		t.Errorf("%d lines after their time; uses since %s", f.s.Reviewed.Len(), f.s.UsesSince(f.now))
	}
}

func TestReviewsAreBounded(t *testing.T) {
	f := newFeeder(t, 1)
	f.must(&ProtocolRaised{Version: protocolRollout})
	for i := range MaxReviewed {
		f.s.Reviewed.set(ReviewKey(fmt.Sprintf("g%07d", i), "/node/*", "*"), &Reviewed{})
	}
	f.must(reviewed(f, 0)) // takes no room
	if err := f.apply(reviewed(f, MaxReviewed)); err == nil {
		t.Error("more lines are remembered than there may be")
	}
}
