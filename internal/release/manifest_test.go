package release_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"pgregory.net/rapid"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

func digest(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func signer(t testing.TB, label string) ssh.Signer {
	t.Helper()
	seed := digest("bailment test key " + label)
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed[:]))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func manifest() *release.Manifest {
	return &release.Manifest{
		Version: release.Version{Major: 1, Minor: 4}, Protocol: 1, Commit: strings.Repeat("0123456789", 4),
		Date: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Go: "go1.26.8",
		Files: []release.File{
			{Digest: digest("license"), Size: 10, Platform: "any", Name: "LICENSE"},
			{Digest: digest("amd64"), Size: 30_000_000, Platform: "linux/amd64", Name: "bailment"},
			{Digest: digest("arm64"), Size: 29_000_000, Platform: "linux/arm64", Name: "bailment"},
		},
	}
}

func text(t testing.TB, m *release.Manifest) []byte {
	t.Helper()
	b, err := m.Text()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTextIsTheDocumentedOne(t *testing.T) {
	m := manifest()
	line := func(label, rest string) string { return fmt.Sprintf("%x  %s\n", digest(label), rest) }
	want := "bailment release v1\nversion 1.4.0\nprotocol 1\ncommit " + m.Commit + "\ndate 2026-11-22T12:00:00Z\ngo go1.26.8\n\n" +
		line("license", "10  any  LICENSE") + line("amd64", "30000000  linux/amd64  bailment") + line("arm64", "29000000  linux/arm64  bailment")
	got := text(t, m)
	if string(got) != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	back, err := release.Parse(got)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Fatalf("%+v, %v", back, err)
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(text(t, manifest()))
	amd := good[strings.Index(good, "  any  LICENSE\n")+len("  any  LICENSE\n") : strings.LastIndex(good[:len(good)-1], "\n")+1]
	replace := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("no %q in the good one", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	for name, c := range map[string]struct {
		in   string
		want problem.Reason
	}{
		"empty":                   {"", problem.ReasonInvalid},
		"too large":               {good + strings.Repeat("x", release.MaxManifest), problem.ReasonTooLarge},
		"another kind":            {replace("bailment release v1", "bailment manifest v1"), problem.ReasonInvalid},
		"newer":                   {replace("bailment release v1", "bailment release v2"), problem.ReasonUnknownVersion},
		"no end":                  {strings.TrimSuffix(good, "\n"), problem.ReasonInvalid},
		"empty line at the end":   {good + "\n", problem.ReasonInvalid},
		"carriage returns":        {strings.ReplaceAll(good, "\n", "\r\n"), problem.ReasonInvalid},
		"byte order mark":         {"\ufeff" + good, problem.ReasonInvalid},
		"no files":                {good[:strings.Index(good, "\n\n")+2], problem.ReasonInvalid},
		"no empty line":           {replace("\n\n", "\n"), problem.ReasonInvalid},
		"a line more":             {replace("\nprotocol", "\nnote x\nprotocol"), problem.ReasonInvalid},
		"a line twice":            {replace("\nprotocol 1", "\nprotocol 1\nprotocol 1"), problem.ReasonInvalid},
		"a line less":             {replace("\nprotocol 1", ""), problem.ReasonInvalid},
		"other order":             {replace("version 1.4.0\nprotocol 1", "protocol 1\nversion 1.4.0"), problem.ReasonInvalid},
		"version with v":          {replace("version 1.4.0", "version v1.4.0"), problem.ReasonInvalid},
		"version zero":            {replace("version 1.4.0", "version 0.0.0"), problem.ReasonInvalid},
		"version with build":      {replace("version 1.4.0", "version 1.4.0+x"), problem.ReasonInvalid},
		"protocol zero":           {replace("protocol 1", "protocol 0"), problem.ReasonInvalid},
		"protocol with sign":      {replace("protocol 1", "protocol +1"), problem.ReasonInvalid},
		"protocol with zero":      {replace("protocol 1", "protocol 01"), problem.ReasonInvalid},
		"large protocol":          {replace("protocol 1", "protocol 1000001"), problem.ReasonInvalid},
		"short commit":            {replace("commit 01", "commit "), problem.ReasonInvalid},
		"upper-case commit":       {replace("commit 0", "commit A"), problem.ReasonInvalid},
		"date with offset":        {replace("12:00:00Z", "13:00:00+01:00"), problem.ReasonInvalid},
		"date with fraction":      {replace("12:00:00Z", "12:00:00.5Z"), problem.ReasonInvalid},
		"no such date":            {replace("11-22T", "11-31T"), problem.ReasonInvalid},
		"another toolchain":       {replace("go go1.26.8", "go devel +x"), problem.ReasonInvalid},
		"duplicate line":          {good[:] + good[strings.LastIndex(good[:len(good)-1], "\n")+1:], problem.ReasonInvalid},
		"two for one platform":    {replace(amd, amd+strings.Replace(amd, amd[:4], "0000", 1)), problem.ReasonInvalid},
		"files in another order":  {replace(amd, "") + amd, problem.ReasonInvalid},
		"one space":               {replace("  linux/amd64", " linux/amd64"), problem.ReasonInvalid},
		"three spaces":            {replace("  linux/amd64", "   linux/amd64"), problem.ReasonInvalid},
		"upper-case digest":       {replace(amd[:64], strings.ToUpper(amd[:64])), problem.ReasonInvalid},
		"short digest":            {replace(amd[:64], amd[:62]), problem.ReasonInvalid},
		"zero digest":             {replace(amd[:64], strings.Repeat("0", 64)), problem.ReasonInvalid},
		"no size":                 {replace("30000000", "0"), problem.ReasonInvalid},
		"size with zero":          {replace("30000000", "030000000"), problem.ReasonInvalid},
		"negative size":           {replace("30000000", "-1"), problem.ReasonInvalid},
		"huge size":               {replace("30000000", "1073741825"), problem.ReasonInvalid},
		"size over 64 bits":       {replace("30000000", "99999999999999999999"), problem.ReasonInvalid},
		"platform of one part":    {replace("linux/amd64", "linux"), problem.ReasonInvalid},
		"platform of three parts": {replace("linux/amd64", "linux/amd64/v2"), problem.ReasonInvalid},
		"upper-case platform":     {replace("linux/amd64", "Linux/amd64"), problem.ReasonInvalid},
		"a path":                  {replace("linux/amd64  bailment", "linux/amd64  ../bailment"), problem.ReasonInvalid},
		"hidden":                  {replace("linux/amd64  bailment", "linux/amd64  .bailment"), problem.ReasonInvalid},
		"names itself":            {replace("any  LICENSE", "any  bailment.manifest"), problem.ReasonInvalid},
		"long name":               {replace("any  LICENSE", "any  "+strings.Repeat("L", 65)), problem.ReasonInvalid},
		"too many files":          {good[:strings.Index(good, "\n\n")+2] + strings.Repeat("x\n", release.MaxFiles+1), problem.ReasonInvalid},
		"a NUL":                   {replace("LICENSE", "LIC\x00NSE"), problem.ReasonInvalid},
		"a stranger's words":      {replace("LICENSE", "canary-5b1e x"), problem.ReasonInvalid},
	} {
		m, err := release.Parse([]byte(c.in))
		if !problem.Is(err, c.want) || m != nil {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: the error shows the input: %v", name, err)
		}
	}
}

// What Text writes Parse reads, and what Text refuses nobody can sign by mistake.
func TestTextRefuses(t *testing.T) {
	for name, change := range map[string]func(*release.Manifest){
		"no version":        func(m *release.Manifest) { m.Version = release.Version{} },
		"version with line": func(m *release.Manifest) { m.Version.Pre = "a\nb" },
		"no protocol":       func(m *release.Manifest) { m.Protocol = 0 },
		"no commit":         func(m *release.Manifest) { m.Commit = "" },
		"local time":        func(m *release.Manifest) { m.Date = m.Date.In(time.FixedZone("", 3600)) },
		"no time":           func(m *release.Manifest) { m.Date = time.Time{} },
		"no toolchain":      func(m *release.Manifest) { m.Go = "" },
		"no files":          func(m *release.Manifest) { m.Files = nil },
		"other order":       func(m *release.Manifest) { m.Files[0], m.Files[1] = m.Files[1], m.Files[0] },
		"twice":             func(m *release.Manifest) { m.Files[0] = m.Files[1] },
		"name with line":    func(m *release.Manifest) { m.Files[0].Name = "a\nb" },
	} {
		m := manifest()
		change(m)
		if b, err := m.Text(); !problem.Is(err, problem.ReasonInvalid) || b != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	m := manifest()
	m.Files = nil
	for i := range release.MaxFiles {
		m.Files = append(m.Files, release.File{Digest: digest("x"), Size: release.MaxSize, Platform: "linux/" + strings.Repeat("a", 26), Name: strings.Repeat("n", 62) + string(rune('A'+i/26)) + string(rune('a'+i%26))})
	}
	if b, err := m.Text(); !problem.Is(err, problem.ReasonTooLarge) || b != nil {
		t.Errorf("large: %v", err)
	}
}

func TestVerify(t *testing.T) {
	b := text(t, manifest())
	mine, stranger := signer(t, "release"), signer(t, "stranger")
	listed := []ssh.PublicKey{signer(t, "another").PublicKey(), mine.PublicKey()}
	sign := func(s ssh.Signer, namespace string, message []byte) []byte {
		sig, err := sshsig.Sign(s, namespace, message)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	good := sign(mine, release.Namespace, b)
	m, key, err := release.Verify(b, good, listed)
	if err != nil || !sshsig.SameKey(key, mine.PublicKey()) || m.Version.String() != "1.4.0" {
		t.Fatalf("%+v, %v", m, err)
	}
	nonsense := []byte("bailment release v1\nnonsense\n")
	for name, c := range map[string]struct {
		text, signature []byte
		signers         []ssh.PublicKey
		want            problem.Reason
	}{
		"by a stranger":           {b, sign(stranger, release.Namespace, b), listed, problem.ReasonSignature},
		"nobody is listed":        {b, good, nil, problem.ReasonSignature},
		"for a bundle":            {b, sign(mine, sshsig.NamespaceBundle, b), listed, problem.ReasonSignature},
		"over another text":       {b, sign(mine, release.Namespace, append(bytes.Clone(b), ' ')), listed, problem.ReasonSignature},
		"no signature":            {b, nil, listed, problem.ReasonInvalid},
		"signed, but no manifest": {nonsense, sign(mine, release.Namespace, nonsense), listed, problem.ReasonInvalid},
		"too large":               {make([]byte, release.MaxManifest+1), good, listed, problem.ReasonTooLarge},
	} {
		if m, key, err := release.Verify(c.text, c.signature, c.signers); !problem.Is(err, c.want) || m != nil || key != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// No flipped bit of the text stays signed.
	for i := range b {
		for bit := range 8 {
			changed := bytes.Clone(b)
			changed[i] ^= 1 << bit
			if _, _, err := release.Verify(changed, good, listed); !problem.Is(err, problem.ReasonSignature) {
				t.Fatalf("byte %d, bit %d: %v", i, bit, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(text(f, manifest()))
	f.Add([]byte("bailment release v1\nversion 1.0.0-rc.1\nprotocol 1\ncommit \ndate \ngo go1.26\n\n"))
	f.Add([]byte("bailment release v2\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := release.Parse(in)
		if err != nil {
			if problem.KindOf(err) != problem.Invalid {
				t.Fatalf("%v", err)
			}
			return
		}
		if again := text(t, m); !bytes.Equal(again, in) {
			t.Fatalf("%q became %q", in, again)
		}
	})
}

func TestVersions(t *testing.T) {
	// SemVer §11.4's own example, and more, in ascending order.
	ascending := strings.Fields("0.0.0-0 0.0.1 0.1.0 0.9.0 0.10.0 1.0.0-1 1.0.0-2 1.0.0-10 1.0.0-18446744073709551616 1.0.0--1 1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta 1.0.0-beta.2 1.0.0-beta.11 " +
		"1.0.0-rc.1 1.0.0 1.0.1 1.2.0 1.10.0 2.0.0 4294967295.0.0")
	for i, a := range ascending {
		va, err := release.ParseVersion(a)
		if err != nil || va.String() != a {
			t.Errorf("%s: %s, %v", a, va, err)
		}
		for j, b := range ascending {
			vb, _ := release.ParseVersion(b)
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := va.Compare(vb); got != want {
				t.Errorf("%s against %s: %d", a, b, got)
			}
		}
	}
	for _, bad := range []string{
		"", "1", "1.0", "1.0.0.0", "v1.0.0", "01.0.0", "1.00.0", "1.0.0-", "1.0.0-01", "1.0.0-a..b", "1.0.0-a.", "1.0.0+b", "1.0.0-a+b", " 1.0.0", "1.0.0 ", "1.0.0\n", "1.0.x", "-1.0.0", "+1.0.0",
		"4294967296.0.0", "1.0.0-ä", "1.0.0-" + strings.Repeat("a", 60), "ee0356d", "ee0356d-dirty", "unknown",
	} {
		if v, err := release.ParseVersion(bad); err == nil {
			t.Errorf("%q: %s", bad, v)
		}
	}
	if !(release.Version{}).IsZero() || (release.Version{Pre: "0"}).IsZero() {
		t.Error("IsZero")
	}
}

// Any two versions are ordered one way.
func TestVersionsAreOrdered(t *testing.T) {
	draw := rapid.Custom(func(t *rapid.T) release.Version {
		v, err := release.ParseVersion(rapid.StringMatching(`[0-2]\.[0-2]\.(0|1)(-(0|[1-3]|1[0-9]|[ab-]{1,2})(\.(0|[1-3]|[ab]))?)?`).Draw(t, "version"))
		if err != nil {
			t.Fatal(err)
		}
		return v
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := draw.Draw(t, "a"), draw.Draw(t, "b"), draw.Draw(t, "c")
		if a.Compare(b) != -b.Compare(a) || (a.Compare(b) == 0) != (a == b) {
			t.Fatalf("%s and %s", a, b)
		}
		if a.Compare(b) <= 0 && b.Compare(c) <= 0 && a.Compare(c) > 0 {
			t.Fatalf("%s, %s and %s", a, b, c)
		}
	})
}
