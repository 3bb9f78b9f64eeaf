package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// canary is a value that is found again wherever it comes to light, in whatever dress. It has
// characters that every escaping changes.
const canary = `c4n4ry-"9f"/3b&7=<é>%k+Zq\8Xw2Lm5T`

// form is one dress of a value: what to look for.
type form struct {
	name string
	text []byte
}

// forms lists the dresses of a value. Base64 depends on where in a longer text the value begins, so
// there are three of it, without the characters at both ends that neighbours share.
func forms(value string) []form {
	out := []form{
		{"raw", []byte(value)},
		{"hex", []byte(hex.EncodeToString([]byte(value)))},
		{"HEX", []byte(strings.ToUpper(hex.EncodeToString([]byte(value))))},
		{"URL query", []byte(url.QueryEscape(value))},
		{"URL path", []byte(url.PathEscape(value))},
		{"Go quoted", []byte(strings.Trim(fmt.Sprintf("%q", value), `"`))},
		{"Go quoted ASCII", []byte(strings.Trim(fmt.Sprintf("%+q", value), `"`))},
		{"byte list", []byte(strings.Trim(fmt.Sprint([]byte(value)), "[]"))},
	}
	j, _ := json.Marshal(value)
	out = append(out, form{"JSON", bytes.Trim(j, `"`)})
	var plain bytes.Buffer
	enc := json.NewEncoder(&plain)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(value)
	out = append(out, form{"JSON without HTML", bytes.Trim(bytes.TrimSpace(plain.Bytes()), `"`)})
	for _, e := range []struct {
		name string
		enc  *base64.Encoding
	}{{"base64", base64.RawStdEncoding}, {"base64 URL", base64.RawURLEncoding}} {
		for shift := range 3 {
			text := e.enc.EncodeToString(append(make([]byte, shift), value...))
			begin := (shift*8 + 5) / 6
			out = append(out, form{fmt.Sprintf("%s +%d", e.name, shift), []byte(text[begin : len(text)-2])})
		}
	}
	return out
}

// search says in which dresses a value stands in data.
func search(data []byte, value string) []string {
	var found []string
	for _, f := range forms(value) {
		if bytes.Contains(data, f.text) {
			found = append(found, f.name)
		}
	}
	return found
}

// searchTree looks through all files below a directory.
func searchTree(t *testing.T, dir, value string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, f := range search(data, value) {
			found = append(found, path+" ("+f+")")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The search itself must find a leak of each kind, wherever it begins.
func TestSearchFindsPlantedLeaks(t *testing.T) {
	dresses := map[string]func(string) string{
		"raw":        func(s string) string { return s },
		"hex":        func(s string) string { return hex.EncodeToString([]byte(s)) },
		"base64":     func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		"base64 URL": func(s string) string { return base64.URLEncoding.EncodeToString([]byte(s)) },
		"URL":        url.QueryEscape,
		"URL path":   url.PathEscape,
		"JSON":       func(s string) string { b, _ := json.Marshal(map[string]string{"v": s}); return string(b) },
		"%q":         func(s string) string { return fmt.Sprintf("%q", s) },
		"%+q":        func(s string) string { return fmt.Sprintf("%+q", s) },
		"%v bytes":   func(s string) string { return fmt.Sprint([]byte(s)) },
		"%X":         func(s string) string { return fmt.Sprintf("%X", s) },
	}
	for name, dress := range dresses {
		for shift := range 4 {
			for after := range 4 {
				text := "level=INFO msg=" + dress(strings.Repeat("#", shift)+canary+strings.Repeat("~", after)) + " end"
				if name == "%v bytes" || len(search([]byte(text), canary)) > 0 {
					continue
				}
				t.Errorf("%s, %d before and %d after, is not found in %s", name, shift, after, text)
			}
		}
		if len(search([]byte(dress(canary)), canary)) == 0 {
			t.Errorf("%s is not found", name)
		}
	}
	if found := search([]byte("nothing of the kind: c4n4ry"), canary); len(found) > 0 {
		t.Errorf("found %v where there is nothing", found)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "leak"), []byte("x"+canary), 0o600); err != nil {
		t.Fatal(err)
	}
	if len(searchTree(t, dir, canary)) != 1 {
		t.Error("a leak into a file is not found")
	}
}
