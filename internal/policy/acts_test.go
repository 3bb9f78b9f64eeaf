package policy

import (
	"strings"
	"testing"
	"time"
)

// What ends an environment takes two and a day in production, whatever the bundle says; destroying waits if it is asked to.
func TestNeedsOfWhatIsFinal(t *testing.T) {
	final := []string{}
	for _, a := range Acts {
		if a.Final {
			final = append(final, a.Name)
		} else if a.Least > 0 || a.Delay > 0 {
			t.Errorf("%s can be undone, and waits", a.Name)
		}
	}
	if got := strings.Join(final, " "); got != "identity.decommission secret.destroy secret.export environment.delete custody.move" {
		t.Errorf("what can't be undone is %s", got)
	}
	for _, c := range []struct {
		name string
		env  Environment
		act  string
		want Need
	}{
		{"production", Environment{Class: Production, Approvals: 1}, ActDeleteEnvironment, Need{Approvals: 2, Delay: 24 * time.Hour}},
		{"more", Environment{Class: Production, Approvals: 3, acts: []actNeed{{act: ActDeleteEnvironment, required: 4, delay: 48 * time.Hour}}}, ActDeleteEnvironment, Need{Approvals: 4, Delay: 48 * time.Hour}},
		{"development", Environment{Class: Development}, ActDeleteEnvironment, Need{Approvals: 1, Self: true}},
		{"development asks", Environment{Class: Development, Approvals: 1, acts: []actNeed{{act: ActDeleteEnvironment, required: 1, delay: time.Hour}}}, ActDeleteEnvironment, Need{Approvals: 1, Delay: time.Hour}},
		{"custody", Environment{Class: Production, Approvals: 1}, ActMoveCustody, Need{Approvals: 2}},
		{"custody waits", Environment{Class: Production, Approvals: 1, acts: []actNeed{{act: ActMoveCustody, required: 2, delay: time.Hour}}}, ActMoveCustody, Need{Approvals: 2, Delay: time.Hour}},
		{"destroy", Environment{Class: Production, Approvals: 1}, ActDestroy, Need{Approvals: 1}},
		{"destroy waits", Environment{Class: Production, Approvals: 1, acts: []actNeed{{act: ActDestroy, required: 1, delay: time.Hour}}}, ActDestroy, Need{Approvals: 1, Delay: time.Hour}},
		{"decommission", Environment{Class: Production, Approvals: 2}, ActDecommission, Need{Approvals: 2}},
	} {
		if got := c.env.Needs(c.act); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}
