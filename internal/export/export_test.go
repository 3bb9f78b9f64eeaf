package export_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/bailment/bailment/internal/export"
)

func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// What was sealed is read by age and encoding/json alone, and by nobody else's identity.
func TestSealIsAgeOfJSONLines(t *testing.T) {
	id := identity(t)
	to, err := export.ParseRecipient(id.Recipient().String())
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte{0, 0xff, '"', '\n'}, 20<<10) // longer than a chunk of age
	items := []export.Item{{"a/b", 1, "sha256:aa", []byte("one")}, {"a/c", 18446744073709551615, "sha256:bb", big}, {"z", 3, "", nil}}
	file, err := export.Seal(to, export.Header{Environment: "e", Genesis: "sha256:00", Change: 7, Secrets: "*"}, items)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(file, []byte("a/b")) || !bytes.HasPrefix(file, []byte("age-encryption.org/v1\n-> X25519 ")) {
		t.Errorf("it begins with %q", file[:40])
	}
	r, err := age.Decrypt(bytes.NewReader(file), id)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(r)
	var h export.Header
	text, err := lines.ReadBytes('\n')
	if err != nil || json.Unmarshal(text, &h) != nil || h != (export.Header{Format: export.Format, Environment: "e", Genesis: "sha256:00", Change: 7, Secrets: "*", Count: 3}) {
		t.Errorf("%s: %v", text, err)
	}
	for _, want := range items {
		var got struct {
			Secret, Digest string
			Version        uint64
			Value          []byte
		}
		text, err := lines.ReadBytes('\n')
		if err != nil || json.Unmarshal(text, &got) != nil || got.Secret != want.Secret || got.Version != want.Version || got.Digest != want.Digest || !bytes.Equal(got.Value, want.Value) {
			t.Errorf("%s is %.80s: %v", want.Secret, text, err)
		}
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("%d bytes follow: %v", len(rest), err)
	}
	if _, err := age.Decrypt(bytes.NewReader(file), identity(t)); err == nil {
		t.Error("somebody else opens it")
	}
	if string(items[0].Value) != "one" {
		t.Error("the caller's value was changed")
	}
}

func TestParseRecipient(t *testing.T) {
	id := identity(t)
	good := id.Recipient().String()
	for _, bad := range []string{
		"", "age1", good[:len(good)-1], good + "q", strings.ToUpper(good), " " + good, good + "\n", id.String(), "ssh-ed25519 AAAA", "age1pq" + good[4:],
		good[:20] + "b" + good[21:],
	} {
		if _, err := export.ParseRecipient(bad); err == nil {
			t.Errorf("%q is taken", bad)
		} else if bad != "" && strings.Contains(err.Error(), bad) && bad != "age1" {
			t.Errorf("the error tells %q", bad)
		}
	}
	if _, err := export.ParseRecipient(good); err != nil {
		t.Error(err)
	}
}
