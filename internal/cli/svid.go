package cli

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/problem"
)

func (a *app) svidCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "svid", Short: "The login's certificate, for other programs", RunE: group, Args: cobra.ArbitraryArgs,
		Long:    "A login is an X.509-SVID: a certificate that names the identity, and its key.",
		Example: "  bailment svid export --dir svid",
	}
	var dir string
	export := &cobra.Command{
		Use: "export --dir DIR", Short: "Write certificate, key and CA as PEM files", Args: cobra.NoArgs,
		Long: `Writes the login as three files, for curl and whatever else takes PEM: svid.pem has the
certificate and those between it and the CA, key.pem its key, and bundle.pem the CA of
genesis, the only one to trust. They are readable by their owner only, and replace those of an
earlier login. No server is asked.

Whoever has the key is you until the certificate expires or you log out.`,
		Example: "  bailment svid export --dir svid",
		RunE:    func(*cobra.Command, []string) error { return a.exportSVID(dir) },
	}
	export.Flags().StringVar(&dir, "dir", "", "directory to write to, made if need be (required)")
	must(export.MarkFlagRequired("dir"))
	c.AddCommand(export)
	return c
}

type svidView struct {
	Environment string    `json:"environment"`
	Identity    string    `json:"identity"`
	Expires     time.Time `json:"expires"`
	SVID        string    `json:"svid"`
	Key         string    `json:"key"`
	Bundle      string    `json:"bundle"`
}

// exportSVID writes the login as PEM.
func (a *app) exportSVID(dir string) error {
	t, err := a.knownTrust()
	if err != nil {
		return err
	}
	if t == nil {
		return problem.New(problem.ReasonNoSession, "there is no login here: the environment is not pinned").WithFix("log in with `bailment login PERSON`")
	}
	s, err := a.session(t)
	if err != nil {
		return err
	}
	chain, key, err := s.PEM()
	if err != nil {
		return err
	}
	defer clear(key)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return wrong(err, "making the directory")
	}
	v := svidView{
		t.Environment, s.Identity, s.Expires.UTC(),
		filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "bundle.pem"),
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: t.CA.Raw})
	for _, f := range []struct {
		path string
		text []byte
	}{{v.Key, key}, {v.SVID, chain}, {v.Bundle, ca}} {
		if err := durable.WriteFile(f.path, f.text, 0o600); err != nil {
			return wrong(err, "writing %s", f.path)
		}
	}
	return a.show(v, func(r *rows) {
		r.add("identity", v.Identity)
		r.add("expires", v.Expires)
		r.add("certificate", v.SVID)
		r.add("key", v.Key)
		r.add("CA", v.Bundle)
	})
}
