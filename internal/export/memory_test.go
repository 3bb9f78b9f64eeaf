package export_test

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/bailment/bailment/internal/export"
	"github.com/bailment/bailment/internal/seal/sealtest"
)

// Of the plain text nothing stays in memory, neither of what is shorter than a piece of age nor of what is longer.
func TestSealLeavesNothingInMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	to, err := export.ParseRecipient(identity(t).Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 7, 40} {
		value := make([]byte, 9000)
		_, _ = rand.Read(value)
		items := make([]export.Item, n)
		for i := range items {
			items[i] = export.Item{Secret: fmt.Sprintf("a/%d", i), Version: 1, Digest: "sha256:aa", Value: value}
		}
		text := make([]byte, 80)
		base64.StdEncoding.Encode(text, value[:60])
		mark := sealtest.NewMark(text)
		if n := mark.Count(t); n != 0 {
			t.Fatalf("it is in memory %d times before", n)
		}
		if _, err := export.Seal(to, export.Header{Environment: "e", Secrets: "*"}, items); err != nil {
			t.Fatal(err)
		}
		if found := mark.Count(t); found != 0 {
			t.Errorf("of %d values the plain text is still in memory, %d times", n, found)
		}
	}
}
