package audit

import (
	"reflect"
	"testing"

	"github.com/bailment/bailment/internal/state"
)

// Every type that says who acted, or by which bundle, is checked for it.
func TestEveryActIsKnown(t *testing.T) {
	r := &run{state: state.New()}
	for _, typ := range state.Types {
		ev := typ.New()
		v := reflect.ValueOf(ev).Elem()
		if x := v.FieldByName("Actor"); x.Kind() == reflect.Pointer { // the environment itself may do it, too
			x.Set(reflect.ValueOf(new(state.Actor)))
		}
		a := r.actOf(ev)
		if has := v.FieldByName("Actor").IsValid(); has != (a.actor != nil) {
			t.Errorf("%s: has an actor: %t, and one is checked: %t", typ.Kind, has, a.actor != nil)
		}
		if has := v.FieldByName("Ruling").IsValid(); has != (a.ruling != nil) {
			t.Errorf("%s: has a ruling: %t, and one is checked: %t", typ.Kind, has, a.ruling != nil)
		}
	}
}
