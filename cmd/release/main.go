// Command release makes what a release consists of besides its binaries: the manifest that is signed, and the archives that people
// install. scripts/release builds, calls it, and signs in between; see docs/howto/make-a-release.md.
//
//	release manifest --version V --commit C --date D --go G DIR    writes DIR/bailment.manifest of the files in DIR/any and DIR/OS_ARCH
//	release pack DIR                                               checks DIR against its signed manifest, and writes an archive for each platform
//
// Guaranteed: the same files give the same bytes, on every machine that has the same Go; nothing gets into an archive that the manifest
// doesn't name. Not guaranteed: who signed. Pack checks that the signature fits by the key in it, and prints whose that is.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/release"
	"github.com/bailment/bailment/internal/sshsig"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		p := problem.As(err)
		if p.Err != nil && p.Kind == problem.Internal {
			fmt.Fprintln(os.Stderr, "release:", p.Err)
		}
		fmt.Fprintf(os.Stderr, "release: %s\n  fix: %s\n", p.Message, p.WayOut())
		os.Exit(p.Kind.ExitCode())
	}
}

func run(args []string, out io.Writer) error {
	usage := problem.New(problem.ReasonInvalid, "usage: release manifest --version V --commit C --date D --go G DIR, or release pack DIR")
	if len(args) == 0 {
		return usage
	}
	f := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	f.SetOutput(io.Discard)
	switch args[0] {
	case "manifest":
		m := release.Manifest{Protocol: release.Protocol}
		version, date := f.String("version", "", ""), f.String("date", "", "")
		f.StringVar(&m.Commit, "commit", "", "")
		f.StringVar(&m.Go, "go", "", "")
		if f.Parse(args[1:]) != nil || f.NArg() != 1 {
			return usage
		}
		var err error
		if m.Version, err = release.ParseVersion(*version); err != nil {
			return problem.Wrap(err, problem.ReasonInvalid, "--version").WithFix("tag the commit as vMAJOR.MINOR.PATCH, or say VERSION=MAJOR.MINOR.PATCH")
		}
		if m.Date, err = time.Parse(time.RFC3339, *date); err != nil {
			return problem.New(problem.ReasonInvalid, "--date is not a time such as 2026-11-22T12:00:00Z")
		}
		return writeManifest(m, f.Arg(0))
	case "pack":
		if f.Parse(args[1:]) != nil || f.NArg() != 1 {
			return usage
		}
		return pack(f.Arg(0), out)
	}
	return usage
}

// folder is where a platform's files are.
func folder(platform string) string { return strings.ReplaceAll(platform, "/", "_") }

func writeManifest(m release.Manifest, dir string) error {
	folders, err := os.ReadDir(dir)
	if err != nil {
		return problem.Local(err, "look for what is to be released")
	}
	for _, sub := range folders {
		files, err := os.ReadDir(filepath.Join(dir, sub.Name()))
		if err != nil {
			return problem.Local(err, "look for what is to be released")
		}
		for _, file := range files {
			one := release.File{Platform: strings.Replace(sub.Name(), "_", "/", 1), Name: file.Name()}
			if one.Digest, one.Size, err = measure(filepath.Join(dir, sub.Name(), file.Name())); err != nil {
				return err
			}
			m.Files = append(m.Files, one)
		}
	}
	slices.SortFunc(m.Files, func(a, b release.File) int { return strings.Compare(a.Platform+" "+a.Name, b.Platform+" "+b.Name) })
	text, err := m.Text()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, release.ManifestName), text, 0o644); err != nil {
		return problem.Local(err, "write the manifest")
	}
	return nil
}

func measure(path string) (digest [32]byte, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return digest, 0, problem.Local(err, "read what is to be released")
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(h, f); err != nil {
		return digest, 0, problem.Local(err, "read what is to be released")
	}
	return [32]byte(h.Sum(nil)), size, nil
}

// pack writes DIR/bailment-VERSION-OS-ARCH.tar.gz for each platform.
func pack(dir string, out io.Writer) error {
	text, err := os.ReadFile(filepath.Join(dir, release.ManifestName))
	if err != nil {
		return problem.Local(err, "read the manifest")
	}
	armored, err := os.ReadFile(filepath.Join(dir, release.SignatureName))
	if err != nil {
		return problem.Local(err, "read the manifest's signature")
	}
	signature, err := sshsig.ParseSignature(armored)
	if err != nil {
		return err
	}
	m, key, err := release.Verify(text, armored, []ssh.PublicKey{signature.Key})
	if err != nil {
		return err
	}
	if err := compare(m, dir); err != nil {
		return err
	}
	for _, platform := range platforms(m) {
		name, err := archive(m, text, armored, dir, platform)
		if err != nil {
			return err
		}
		fmt.Fprintln(out, name)
	}
	fmt.Fprintf(out, "release %s, signed by %s\n", m.Version, sshsig.Fingerprint(key))
	return nil
}

// compare says whether the files are those of the manifest.
func compare(m *release.Manifest, dir string) error {
	for _, f := range m.Files {
		digest, size, err := measure(filepath.Join(dir, folder(f.Platform), f.Name))
		if err != nil {
			return err
		}
		if digest != f.Digest || size != f.Size {
			return problem.New(problem.ReasonTampered, "%s for %s is not what the manifest says", f.Name, f.Platform)
		}
	}
	return nil
}

func platforms(m *release.Manifest) []string {
	var out []string
	for _, f := range m.Files {
		if f.Name == release.Program && f.Platform != release.AnyPlatform {
			out = append(out, f.Platform)
		}
	}
	return out
}
