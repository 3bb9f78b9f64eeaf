package azure

import "testing"

// Azure compares names without case, but by a character's own pair only: the Kelvin sign is no k, and a capital i with a dot is no i. A name
// that is another one to Azure must be another one here, or who may make resource groups has himself taken for another group's machine.
func TestNamesOfOneCaseOnly(t *testing.T) {
	c := newCloud(t)
	with := func(group string) string {
		id := "/subscriptions/" + subscription + "/resourcegroups/" + group + "/providers/Microsoft.Compute/virtualMachines/web-1"
		ev := evidenceOf(t, c.signed(t, attested(binding())), c.token(t, map[string]any{"xms_mirid": id}))
		res, err := Verify(input(ev, params(t, c.documents(), c.tokens())))
		if err != nil {
			t.Fatal(group, err)
		}
		return res.Claims["token"].(map[string]any)["resource_group"].(string)
	}
	for _, same := range [][2]string{{"KIOSK-prÖd", "kiosk-pröd"}, {"Straße", "straße"}} {
		if with(same[0]) != with(same[1]) {
			t.Errorf("%q is not %q", same[0], same[1])
		}
	}
	for _, other := range []string{"\u212aiosk", "k\u0130osk", "\u212a\u0130OSK"} {
		if got := with(other); got == "kiosk" {
			t.Errorf("%q is taken for %q", other, got)
		}
	}
}
