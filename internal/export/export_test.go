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

// What age takes for a recipient and nobody could ever open: points of small order, to which age can't seal, and other spellings of a point,
// which go into the file's key, and which the identity does not know.
func TestRecipientThatNobodyIs(t *testing.T) {
	for name, text := range map[string]string{
		"zero":                        "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
		"one":                         "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
		"of order 8":                  "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhqqqzyt4v9",
		"of order 8, the other":       "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz9ts6wm9s8",
		"of order 4":                  "age1anlllllllllllllllllllllllllllllllllllllllllllllllals4n2t7m",
		"zero beyond the field":       "age1ahlllllllllllllllllllllllllllllllllllllllllllllllalsn46ayy",
		"one beyond the field":        "age1amlllllllllllllllllllllllllllllllllllllllllllllllalselrwrv",
		"a point beyond the field":    "age17mlllllllllllllllllllllllllllllllllllllllllllllllalsxajvgg",
		"a point with its top bit":    "age1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqzqqyr3apl",
		"another human-readable part": "agf1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqg6645d",
		"a byte too few":              "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqyjf85eq",
	} {
		if _, err := export.ParseRecipient(text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := export.ParseRecipient("age1pyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq8r66x"); err != nil {
		t.Error(err) // the point of which those two are other spellings
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
