package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/methods"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/config"
	"github.com/bailment/bailment/internal/problem"
)

// measuredView is what a machine says of itself, in the terms of an authority.
type measuredView struct {
	EndorsementKey string            `json:"endorsement_key"`
	Certificate    string            `json:"certificate,omitempty"` // who issued it
	Name           string            `json:"name"`
	Version        string            `json:"version"`
	PCRs           map[string]string `json:"pcrs"`
	Events         []string          `json:"events,omitempty"`
}

func (a *app) rootsMeasure() *cobra.Command {
	var file, name, version string
	var pcrs []int
	c := &cobra.Command{
		Use: "measure --name NAME --version VERSION", Short: "Print what this machine has booted, as a set of reference values", Args: cobra.NoArgs,
		Long: `Reads this machine's TPM, by the agent's configuration, and prints what it has booted as an item of
references in an authority of the method tpm, with the endorsement key's digest as a comment. No
server is asked, and nothing is proved: do it on a machine that you know to be in order.

With an event log, programs and command lines are listed by their digests; without one, or with
--pcrs for others, PCRs are taken by their values. A set describes one version of a machine's
software. Before an update, the new version's set is added beside the old one, which gets an end
(until) when the last machine is updated.`,
		Example: "  sudo bailment roots measure --config /etc/bailment/agent.yaml --name web --version 12.8 >> env/authorities/acme.yaml\n" +
			"  bailment roots measure --name web --version 12.8 -o json | jq -r .endorsement_key",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.flags.timeout)
			defer cancel()
			slices.Sort(pcrs)
			one, err := measure(ctx, file, slices.Compact(pcrs))
			if err != nil {
				return err
			}
			one.References[0].Name, one.References[0].Version = name, version
			return a.show(measured(one), func(t *rows) { measuredTable(t, one) })
		},
	}
	f := c.Flags()
	f.StringVar(&file, "config", "", "the agent's configuration file (default: every setting's default)")
	f.StringVar(&name, "name", "", "which machines' software it is (required)")
	f.StringVar(&version, "version", "", "which version of it (required)")
	f.IntSliceVar(&pcrs, "pcrs", nil, "the PCRs that the authority wants (default: those of an authority that names none)")
	must(c.MarkFlagRequired("name"))
	must(c.MarkFlagRequired("version"))
	return c
}

// measure has this machine's half of its method say what the machine is known by.
func measure(ctx context.Context, file string, pcrs []int) (authority.Authority, error) {
	var none authority.Authority
	all := methods.All()
	cfg, err := config.LoadAgent(file, all)
	if err != nil {
		return none, err
	}
	material := attest.Material{}
	for need, path := range cfg.Attest.Files {
		if material[need], err = readRoots(path); err != nil {
			return none, err
		}
	}
	for need, value := range cfg.Attest.Values {
		material[need] = []byte(value)
	}
	x, err := all.NewAttesterFrom(cfg.Attest.Method, material)
	if err != nil {
		return none, err
	}
	m, ok := x.(attest.Measurer)
	if !ok {
		return none, problem.New(problem.ReasonUnsupported, "the attestation method %s measures nothing", cfg.Attest.Method).
			WithFix("name the configuration of an agent with the method tpm: --config, and in it attest.method")
	}
	return m.Measure(ctx, pcrs)
}

func measured(one authority.Authority) measuredView {
	r := one.References[0]
	v := measuredView{EndorsementKey: attest.DigestText(one.EndorsementKeys[0]), Name: r.Name, Version: r.Version, PCRs: map[string]string{}}
	if len(one.Certificates) > 0 {
		v.Certificate = one.Certificates[0].Issuer.String()
	}
	for pcr, values := range r.PCRs {
		v.PCRs[fmt.Sprint(pcr)] = attest.DigestText(values[0])
	}
	for _, e := range r.Events {
		v.Events = append(v.Events, attest.DigestText(e))
	}
	return v
}

// measuredTable prints an item of the YAML list spec.references.
func measuredTable(t *rows, one authority.Authority) {
	v, r := measured(one), one.References[0]
	t.line("    # measured %s; endorsement key %s", stamp(time.Now()), v.EndorsementKey)
	if v.Certificate != "" {
		t.line("    # its certificate is by %s", oneLine(v.Certificate))
	}
	t.line("    - name: %s", quoted(r.Name))
	t.line("      version: %s", quoted(r.Version))
	if len(r.PCRs) > 0 {
		t.line("      pcrs:")
	}
	for _, pcr := range slices.Sorted(maps.Keys(r.PCRs)) {
		t.line("        - {pcr: %d, values: [%s]}", pcr, quoted(attest.DigestText(r.PCRs[pcr][0])))
	}
	if len(v.Events) > 0 {
		t.line("      events:")
	}
	for _, e := range v.Events {
		t.line("        - %s", quoted(e))
	}
}
