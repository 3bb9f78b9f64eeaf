package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	htmltemplate "html/template"
	"log/slog"
	"strings"
	"testing"
	"text/template"
)

const canary = "canary-7f3a91-do-not-show"

// canaryForms are the ways in which the canary could stand in a text.
var canaryForms = func() map[string]string {
	b := []byte(canary)
	return map[string]string{
		"raw": canary, "hex": hex.EncodeToString(b), "HEX": strings.ToUpper(hex.EncodeToString(b)),
		"% x": fmt.Sprintf("% x", b), "base64": base64.StdEncoding.EncodeToString(b)[:20],
		"decimal": strings.Trim(fmt.Sprint(b), "[]"), "octal": strings.Trim(fmt.Sprintf("%o", b), "[]"),
		"Go":     strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", b), "[]byte{"), "}"),
		"binary": strings.Trim(fmt.Sprintf("%b", b), "[]"), "unicode": strings.Trim(fmt.Sprintf("%U", b), "[]"),
		"chars": strings.Trim(fmt.Sprintf("%c", []rune(canary)), "[]"),
	}
}()

// leaks reports in which form the canary stands in text, if it does.
func leaks(text string) string {
	for form, s := range canaryForms {
		if strings.Contains(text, s) {
			return form
		}
	}
	return ""
}

type holder struct {
	Public Secret
	hidden Secret
	ptr    *Secret
	any    any
	list   []Secret
	byName map[string]Secret
}

func planted() (Secret, holder, *holder) {
	s := NewSecret([]byte(canary))
	h := holder{s, s, &s, s, []Secret{s}, map[string]Secret{"k": s}}
	return s, h, &h
}

func TestLeaksFindsEachForm(t *testing.T) {
	b := []byte(canary)
	for _, verb := range []string{"%s", "%x", "%X", "% x", "%v", "%#v", "%o", "%b", "%U", "%q"} {
		if leaks(fmt.Sprintf(verb, b)) == "" {
			t.Errorf("a leak by %s is not found", verb)
		}
	}
	js, _ := json.Marshal(b)
	if leaks(string(js)) == "" {
		t.Error("a leak by JSON is not found")
	}
}

func TestSecretEveryVerb(t *testing.T) {
	s, h, hp := planted()
	wrapped := fmt.Errorf("put %v: %w", s, errors.New("no"))
	nested := struct {
		Err error
		In  **holder
	}{wrapped, &hp}
	for c := rune('!'); c <= '~'; c++ {
		for _, flag := range []string{"", "+", "#", " ", "0", "-", "10", ".3", "#+", "[1]"} {
			verb := "%" + flag + string(c)
			for i, v := range []any{s, &s, h, hp, nested, &nested, []any{s, h}, []Secret{s}, map[string]any{"s": s}} {
				if form := leaks(fmt.Sprintf(verb, v)); form != "" {
					t.Fatalf("%s of value %d leaks as %s", verb, i, form)
				}
			}
		}
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%X", "%q", "%d"} {
		if got := fmt.Sprintf(verb, s); got != "[secret]" {
			t.Errorf("%s gives %q", verb, got)
		}
		if got := fmt.Sprintf(verb, Secret{}); got != "[secret]" {
			t.Errorf("%s of the zero value gives %q", verb, got)
		}
	}
	if got := fmt.Sprintf("%v", struct{ S Secret }{s}); got != "{[secret]}" {
		t.Errorf("in a struct: %q", got)
	}
	if got := fmt.Sprint(s) + fmt.Sprintln(&s) + s.String() + s.GoString(); strings.Count(got, "[secret]") != 4 {
		t.Errorf("print functions: %q", got)
	}
}

func TestSecretEncodings(t *testing.T) {
	s, _, _ := planted()
	type exported struct {
		A string
		S Secret
	}
	type attr struct {
		S Secret `xml:",attr"`
	}
	in := exported{"a", s}
	for name, encode := range map[string]func() ([]byte, error){
		"json":         func() ([]byte, error) { return json.Marshal(in) },
		"json pointer": func() ([]byte, error) { return json.Marshal(&in) },
		"json map":     func() ([]byte, error) { return json.Marshal(map[string]any{"s": s}) },
		"json bare":    func() ([]byte, error) { return json.Marshal(s) },
		"xml":          func() ([]byte, error) { return xml.Marshal(in) },
		"xml attr":     func() ([]byte, error) { return xml.Marshal(attr{s}) },
		"text":         s.MarshalText,
		"binary":       s.MarshalBinary,
		"gob": func() ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(in)
			return b.Bytes(), err
		},
	} {
		out, err := encode()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if form := leaks(string(out) + fmt.Sprint(err)); form != "" {
			t.Errorf("%s leaks as %s", name, form)
		}
	}
}

func TestSecretTemplatesAndLogs(t *testing.T) {
	s, h, hp := planted()
	const text = `{{.Public}} {{printf "%s %x %v" .Public .Public .Public}} {{.}} {{print .Public | printf "%q"}}`
	var out strings.Builder
	if err := template.Must(template.New("").Parse(text)).Execute(&out, h); err != nil {
		t.Fatal(err)
	}
	if err := htmltemplate.Must(htmltemplate.New("").Parse(text+`<a href="/{{.Public}}" onclick="x({{.Public.String}})">`)).Execute(&out, hp); err != nil {
		t.Fatal(err)
	}
	for _, handler := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		log := slog.New(handler)
		log.Error("event", "s", s, "p", &s, "h", h, "hp", hp, "list", []Secret{s}, "err", fmt.Errorf("%w: %v", errors.New("x"), h), slog.Group("g", "s", s))
		log.With("s", s).WithGroup("g").Info("event", slog.Any("s", []any{s, hp}))
	}
	if form := leaks(out.String()); form != "" {
		t.Fatalf("leaks as %s: %s", form, out.String())
	}
	if n := strings.Count(out.String(), "[secret]"); n < 12 {
		t.Errorf("only %d redactions in %s", n, out.String())
	}
}

func TestSecretPanicValue(t *testing.T) {
	s, _, _ := planted()
	defer func() {
		if form := leaks(fmt.Sprintf("%v %+v", recover(), s)); form != "" {
			t.Errorf("leaks as %s", form)
		}
	}()
	panic(s)
}

func TestSecretValue(t *testing.T) {
	var zero Secret
	if zero.Len() != 0 || zero.Expose() != nil || !zero.Equal(NewSecret(nil)) || zero.Clone().Len() != 0 {
		t.Error("the zero value is not an empty secret")
	}
	zero.Wipe()
	raw := []byte(canary)
	s := NewSecret(raw)
	copied, cloned := s, s.Clone()
	if string(s.Expose()) != canary || s.Len() != len(canary) || !s.Equal(cloned) || s.Equal(zero) {
		t.Fatal("secret doesn't hold its value")
	}
	if s.Equal(NewSecret([]byte(canary[:len(canary)-1]))) || s.Equal(NewSecret([]byte(strings.Replace(canary, "7", "8", 1)))) {
		t.Error("different secrets are equal")
	}
	s.Wipe()
	if copied.Len() != 0 || copied.Expose() != nil {
		t.Error("a copy survived Wipe")
	}
	if !bytes.Equal(raw, make([]byte, len(canary))) {
		t.Error("Wipe left bytes in the buffer")
	}
	if string(cloned.Expose()) != canary {
		t.Error("Wipe reached a clone")
	}
	s.Wipe()
}
