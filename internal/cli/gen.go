package cli

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/bailment/bailment/internal/problem"
)

// genCommand writes documents about the command line itself. It is for whoever builds and packages.
func (a *app) genCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "gen", Short: "Generate documents about this command line", Hidden: true, RunE: group, Args: cobra.ArbitraryArgs,
		Long: "Generates the reference and man pages. They depend on the binary only.", Example: "  bailment gen docs docs/reference/cli",
	}
	c.AddCommand(
		&cobra.Command{
			Use: "docs DIR", Short: "Write the reference as Markdown", Args: cobra.ExactArgs(1),
			Long: "Writes a Markdown page for each command to DIR, and removes the pages of commands that are gone.", Example: "  bailment gen docs docs/reference/cli",
			RunE: func(cmd *cobra.Command, args []string) error { return generate(cmd.Root(), args[0], ".md", markdown) },
		},
		&cobra.Command{
			Use: "man DIR", Short: "Write man pages", Args: cobra.ExactArgs(1),
			Long: "Writes a man page of section 1 for each command to DIR, and removes the pages of commands that\nare gone.", Example: "  bailment gen man dist/man",
			RunE: func(cmd *cobra.Command, args []string) error { return generate(cmd.Root(), args[0], ".1", man) },
		},
	)
	return c
}

// generate writes a page for each command that is shown, and removes pages that no command has any more.
func generate(root *cobra.Command, dir, ext string, page func(*cobra.Command) ([]byte, error)) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return wrong(err, "making the directory")
	}
	pages := make(map[string]bool)
	for _, c := range documented(root) {
		name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ext
		pages[name] = true
		text, err := page(c)
		if err != nil {
			return problem.Wrap(err, problem.ReasonInternal, "writing %s", name)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return wrong(err, "writing %s", name)
		}
	}
	old, err := filepath.Glob(filepath.Join(dir, "bailment*"+ext))
	if err != nil {
		return wrong(err, "reading %s", dir)
	}
	for _, path := range old {
		if pages[filepath.Base(path)] {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return wrong(err, "removing %s", path)
		}
	}
	return nil
}

func documented(c *cobra.Command) []*cobra.Command {
	c.InitDefaultHelpFlag()
	c.InitDefaultVersionFlag()
	c.DisableAutoGenTag = true // it holds a date
	out := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && !sub.IsAdditionalHelpTopicCommand() {
			out = append(out, documented(sub)...)
		}
	}
	return out
}

func markdown(c *cobra.Command) ([]byte, error) {
	var b bytes.Buffer
	err := doc.GenMarkdownCustom(c, &b, func(name string) string { return strings.ReplaceAll(name, "_", "-") })
	return b.Bytes(), err
}

// man writes a page without the date that the generator insists on: the same binary gives the same bytes.
func man(c *cobra.Command) ([]byte, error) {
	var b bytes.Buffer
	date := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "Bailment", Manual: "Bailment", Date: &date}, &b)
	return bytes.Replace(b.Bytes(), []byte(`"Jan 0001"`), []byte(`""`), 1), err
}
