package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

// maxRoots is the most bytes of one file or answer with roots.
const maxRoots = 1 << 20

type importOptions struct {
	method, name, dir, description, source string
	issuer, keysURL                        string
	endorsementKeys                        []string
	maxAge                                 time.Duration
	each, replace                          bool
}

func (a *app) rootsImport() *cobra.Command {
	var o importOptions
	c := &cobra.Command{
		Use: "import --method METHOD [FILE|URL]...", Short: "Write an authority of a bundle from certificates or keys", Args: cobra.ArbitraryArgs,
		Long: `Reads certificates (PEM or DER), a JSON Web Key Set or SSH public keys, from files or https
addresses, holds them to the rules of bundles, prints each one's subject, SHA-256 fingerprint, end
and source, and writes them as authorities/NAME.yaml into the bundle's directory. Compare the
fingerprints with a second source before you propose the bundle: whoever can make others believe in
a wrong root can be any machine.

All of the input makes one authority; with --each, every file makes one of its own, named after it.
An issuer of tokens whose keys are not pinned needs no file: --issuer is enough.`,
		Example: "  bailment roots import --method aws --each --source https://docs.aws.amazon.com/… certificates/*.pem\n" +
			"  bailment roots import --method tpm --name acme https://pki.acme.example/ek-root.cer\n" +
			"  bailment roots import --method github --name github --issuer https://token.actions.githubusercontent.com",
		RunE: func(c *cobra.Command, args []string) error { return a.importRoots(c.Context(), o, args) },
	}
	f := c.Flags()
	f.StringVar(&o.method, "method", "", "attestation method whose evidence the authority judges (required)")
	f.StringVar(&o.name, "name", "", "the authority's name (default: that of the first file; for aws it must end in the region)")
	f.StringVar(&o.dir, "dir", ".", "the bundle's directory")
	f.StringVar(&o.description, "description", "", "what it is, for people")
	f.StringVar(&o.source, "source", "", "where the roots are from, for people (default: the files or addresses)")
	f.StringVar(&o.issuer, "issuer", "", "the exact issuer (iss) of tokens, an https address")
	f.StringVar(&o.keysURL, "keys-url", "", "where the issuer's keys are, if its discovery document is not to be asked")
	f.StringSliceVar(&o.endorsementKeys, "endorsement-key", nil, "tpm: sha256:HEX of the SubjectPublicKeyInfo of an endorsement key that is trusted without a certificate")
	f.DurationVar(&o.maxAge, "max-age", 0, "aws, azure: how old evidence may be that holds no challenge of ours")
	f.BoolVar(&o.each, "each", false, "make an authority of every file, named after it")
	f.BoolVar(&o.replace, "replace", false, "replace an authority's document that is there already")
	must(c.MarkFlagRequired("method"))
	a.complete(c, "method", attestedMethods)
	return c
}

// importRoots checks everything before it writes anything.
func (a *app) importRoots(ctx context.Context, o importOptions, args []string) error {
	method, ok := authority.FindMethod(o.method)
	if !ok || !method.Authorities() {
		return problem.New(problem.ReasonInvalid, "there is no attestation method %q with authorities", o.method).WithFix("use one of %s", strings.Join(attestedMethods(ctx), ", "))
	}
	if st, err := os.Stat(o.dir); err != nil || !st.IsDir() {
		return problem.New(problem.ReasonInvalid, "%s is not a directory", o.dir).WithFix("name the bundle's directory with --dir")
	}
	if o.each && o.name != "" {
		return problem.New(problem.ReasonInvalid, "--each names every authority after its file, so --name has no effect").WithFix("leave one of them out")
	}
	groups := [][]string{args}
	if o.each {
		groups = nil
		for _, arg := range args {
			groups = append(groups, []string{arg})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, a.flags.timeout)
	defer cancel()
	files := policy.Files{}
	var views []rootView
	now := time.Now().UTC().Truncate(time.Second)
	for _, group := range groups {
		one, err := readAuthority(ctx, o, group, now)
		if err != nil {
			return err
		}
		to := "authorities/" + one.Name + ".yaml"
		if _, twice := files[to]; twice {
			return problem.New(problem.ReasonInvalid, "two files make the authority %s", one.Name).WithFix("rename one of them")
		}
		if files[to], err = document(one, o.description); err != nil {
			return err
		}
		views = append(views, rootViews(one, now, endsSoon)...)
	}
	if err := a.checkImport(o, method, files); err != nil {
		return err
	}
	for _, to := range files.Paths() {
		if err := writeAuthority(filepath.Join(o.dir, filepath.FromSlash(to)), files[to], o.replace); err != nil {
			return err
		}
	}
	if err := a.showRoots(views); err != nil {
		return err
	}
	a.noteEnds(views)
	a.note("wrote %d %s in %s: compare the fingerprints with a second source, then `bailment bundle propose`", len(files), plural(len(files), "document"), filepath.Join(o.dir, "authorities"))
	return nil
}

func writeAuthority(to string, text []byte, replace bool) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return wrong(err, "making the directory of authorities")
	}
	if _, err := os.Lstat(to); err == nil && !replace {
		return problem.New(problem.ReasonExists, "%s is there already", to).WithFix("choose another --name, or say --replace; a successor belongs beside the root that it follows until that one has ended")
	}
	if err := durable.WriteFile(to, text, 0o644); err != nil {
		return wrong(err, "writing %s", to)
	}
	return nil
}

// checkImport compiles the new documents, with the rest of the bundle where it is one, as the server would.
func (a *app) checkImport(o importOptions, method authority.Method, files policy.Files) error {
	for _, to := range files.Paths() {
		if _, err := os.Lstat(filepath.Join(o.dir, filepath.FromSlash(to))); err == nil && !o.replace {
			return problem.New(problem.ReasonExists, "%s is there already", to).WithFix("choose another --name, or say --replace; a successor belongs beside the root that it follows until that one has ended")
		}
	}
	if _, err := os.Stat(filepath.Join(o.dir, "environment.yaml")); err != nil {
		a.note("note: %s has no environment.yaml yet, so the bundle is not checked as a whole", o.dir)
		return nil
	}
	all, err := policy.ReadFiles(os.DirFS(o.dir))
	if err != nil {
		return err
	}
	for to, text := range files {
		all[to] = text
	}
	prog, err := compile(all)
	var found policy.Findings
	if errors.As(err, &found) {
		for _, f := range found {
			if _, ours := files[f.Pos.File]; ours {
				return problem.New(problem.ReasonBundleInvalid, "%s: %s", f.Pos, f.Message).WithFix("the bundle would not come into force with this authority: give what is missing, or leave out what has no effect")
			}
		}
		a.note("warning: the rest of the bundle has findings: see `bailment bundle check %s`", o.dir)
		return nil
	}
	if err != nil {
		return err
	}
	m, err := methods.All().Find(method.Name)
	if err != nil || m.Params == nil {
		return nil // a method of a later version: its authorities can be prepared
	}
	if _, err := m.Params(prog.Authorities(method.Name)); err != nil {
		return problem.Wrap(err, problem.ReasonBundleInvalid, "the verifier could not use the bundle's authorities").
			WithFix("give what the method wants: see its page, or import what is missing first")
	}
	return nil
}

// readAuthority makes an authority of some files or addresses.
func readAuthority(ctx context.Context, o importOptions, args []string, now time.Time) (authority.Authority, error) {
	one := authority.Authority{Name: o.name, Method: o.method, Source: o.source, Imported: now, Issuer: o.issuer, KeysURL: o.keysURL, MaxAge: o.maxAge}
	if one.Name == "" && len(args) > 0 {
		one.Name = nameOf(args[0])
	}
	if one.Source == "" {
		one.Source = strings.Join(args, " ")
	}
	bad := func(err error) (authority.Authority, error) {
		return one, problem.New(problem.ReasonInvalid, "the authority %s: %v", one.Name, err).WithFix("check what is imported; nothing was written")
	}
	if err := authority.ValidName(one.Name); err != nil {
		return one, problem.New(problem.ReasonInvalid, "%v", err).WithFix("give it a --name")
	}
	if strings.ContainsFunc(one.Source, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad(errors.New("its source must be one line"))
	}
	var certificates []byte
	for _, arg := range args {
		text, err := fetchRoots(ctx, arg)
		if err != nil {
			return one, err
		}
		more, err := addRoots(&one, text)
		if err != nil {
			return bad(fmt.Errorf("%s: %w", path.Base(arg), err))
		}
		certificates = append(certificates, more...)
	}
	if len(certificates) > 0 {
		parsed, err := authority.ParseFor(one.Method, certificates)
		if err != nil {
			return bad(err)
		}
		one.Certificates = parsed
	}
	for _, d := range o.endorsementKeys {
		raw, err := hex.DecodeString(strings.TrimPrefix(d, "sha256:"))
		if err != nil || len(raw) != 32 || !strings.HasPrefix(d, "sha256:") {
			return bad(errors.New("an endorsement key is given as sha256: and 64 hexadecimal digits"))
		}
		one.EndorsementKeys = append(one.EndorsementKeys, [32]byte(raw))
	}
	var set authority.Set
	if err := set.Add(one.Name, one.Certificates); err != nil {
		return bad(err)
	}
	if len(rootViews(one, now, 0)) == 0 {
		return bad(errors.New("it would trust nothing: give files or addresses, or an issuer"))
	}
	return one, nil
}

// nameOf makes a name of a file's or address's last element.
func nameOf(arg string) string {
	if u, err := url.Parse(arg); err == nil && u.Scheme == "https" {
		arg = u.Path
	}
	base := path.Base(filepath.ToSlash(arg))
	return strings.ReplaceAll(strings.ToLower(strings.TrimSuffix(base, path.Ext(base))), "_", "-")
}

// addRoots adds what a text holds to an authority. Certificates are given back as PEM, to be parsed together.
func addRoots(to *authority.Authority, text []byte) (certificates []byte, err error) {
	trimmed := bytes.TrimSpace(text)
	switch {
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return nil, errors.New("there is a PRIVATE KEY: it does not belong here, and must be replaced now that it has been shown")
	case bytes.Contains(text, []byte("-----BEGIN ")):
		return pemOnly(text)
	case len(trimmed) > 0 && trimmed[0] == '{':
		if to.Keys != nil {
			return nil, errors.New("a second key set: one authority has one issuer")
		}
		to.Keys, err = publicKeys(trimmed)
		return nil, err
	case len(text) > 0 && text[0] == 0x30:
		if c, err := x509.ParseCertificate(text); err == nil {
			return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), nil
		}
		return nil, errors.New("it begins like a certificate in DER, and is none")
	}
	return nil, sshKeys(to, trimmed)
}

// pemOnly keeps the blocks of a text and drops what stands between them, which authorities publish as comments.
func pemOnly(text []byte) ([]byte, error) {
	var out []byte
	begun := bytes.Count(text, []byte("-----BEGIN "))
	n := 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		n++
		block.Headers = nil
		out = append(out, pem.EncodeToMemory(block)...)
	}
	// pem.Decode skips a damaged block as if it were a comment, which would drop a root silently.
	if n != begun {
		return nil, errors.New("a PEM block is damaged")
	}
	return out, nil
}

// publicKeys reads a key set by the rule of bundles, and keeps of each key what checks a signature.
func publicKeys(text []byte) (*jose.JSONWebKeySet, error) {
	set, err := authority.ParseKeys(text)
	if err != nil {
		return nil, err
	}
	out := &jose.JSONWebKeySet{}
	for _, k := range set.Keys {
		out.Keys = append(out.Keys, jose.JSONWebKey{Key: k.Key, KeyID: k.KeyID, Algorithm: k.Algorithm, Use: k.Use})
	}
	return out, nil
}

// sshKeys reads keys of SSH certificate authorities, a line each, as in a .pub file or authorized_keys; "@cert-authority HOSTS KEY" of a
// known_hosts file too.
func sshKeys(to *authority.Authority, text []byte) error {
	none := errors.New("it holds neither certificates (PEM or DER), nor a JSON Web Key Set, nor SSH public keys")
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if rest, ok := bytes.CutPrefix(line, []byte("@cert-authority ")); ok {
			_, line, _ = bytes.Cut(bytes.TrimSpace(rest), []byte(" "))
		}
		key, _, options, _, err := ssh.ParseAuthorizedKey(line)
		if err != nil || len(options) > 0 {
			return none
		}
		to.SSHKeys = append(to.SSHKeys, key)
	}
	if len(to.SSHKeys) == 0 {
		return none
	}
	return nil
}

// fetchRoots reads a file, or an https address: nothing of it is believed yet but that it came from there.
func fetchRoots(ctx context.Context, arg string) ([]byte, error) {
	u, err := url.Parse(arg)
	if err != nil || !strings.Contains(arg, "://") {
		return readRoots(arg)
	}
	if u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, problem.New(problem.ReasonInvalid, "roots are fetched from https addresses only").WithFix("get the file yourself, compare it with a second source, and name it here")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, arg, nil)
	if err != nil {
		return nil, wrong(err, "the address of the roots")
	}
	// A redirect would make the source another one than what is written down.
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonUnreachable, "fetching %s", u.Host)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, problem.New(problem.ReasonUnreachable, "%s answers with HTTP status %d", u.Host, resp.StatusCode).WithFix("check the address; a redirect is not followed: give the address where it leads")
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxRoots+1))
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonUnreachable, "fetching %s", u.Host)
	}
	return limited(text, arg)
}

func readRoots(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, wrong(err, "reading the roots")
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRoots+1))
	if err != nil {
		return nil, wrong(err, "reading the roots")
	}
	return limited(text, name)
}

func limited(text []byte, from string) ([]byte, error) {
	if len(text) > maxRoots {
		return nil, problem.New(problem.ReasonTooLarge, "%s has more than %d bytes", from, maxRoots)
	}
	return text, nil
}

// document writes an authority as a bundle's document. Its order and form are fixed, so that two imports of the same differ in what differs.
func document(a authority.Authority, description string) ([]byte, error) {
	var b bytes.Buffer
	field := func(indent, name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s%s: %s\n", indent, name, quoted(value))
		}
	}
	block := func(name string, text []byte) {
		fmt.Fprintf(&b, "  %s: |\n", name)
		for line := range bytes.Lines(text) {
			fmt.Fprintf(&b, "    %s\n", bytes.TrimRight(line, "\n"))
		}
	}
	b.WriteString("apiVersion: bailment/v1\nkind: Authority\nmetadata:\n")
	field("  ", "name", a.Name)
	field("  ", "description", description)
	b.WriteString("spec:\n")
	field("  ", "method", a.Method)
	field("  ", "source", a.Source)
	field("  ", "imported", stamp(a.Imported))
	field("  ", "issuer", a.Issuer)
	field("  ", "keysURL", a.KeysURL)
	if a.MaxAge != 0 {
		field("  ", "maxAge", a.MaxAge.String())
	}
	if len(a.SSHKeys) > 0 {
		b.WriteString("  sshKeys:\n")
		for _, k := range a.SSHKeys {
			fmt.Fprintf(&b, "    - %s\n", quoted(strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))))
		}
	}
	if len(a.EndorsementKeys) > 0 {
		b.WriteString("  endorsementKeys:\n")
		for _, d := range a.EndorsementKeys {
			fmt.Fprintf(&b, "    - %s\n", quoted("sha256:"+hex.EncodeToString(d[:])))
		}
	}
	if a.Keys != nil {
		text, err := json.MarshalIndent(a.Keys, "", "  ")
		if err != nil {
			return nil, problem.Wrap(err, problem.ReasonInternal, "encoding the issuer's keys")
		}
		block("keys", append(text, '\n'))
	}
	if len(a.Certificates) > 0 {
		block("pem", certificatesPEM(a.Certificates))
	}
	return b.Bytes(), nil
}

func certificatesPEM(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// quoted is a YAML scalar in double quotes, which is what JSON has (YAML 1.2 §1.3).
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	must(e.Encode(s))
	return strings.TrimSpace(b.String())
}
