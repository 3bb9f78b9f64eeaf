package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/problem"
)

func (a *app) changeCarryOut() *cobra.Command {
	var yes bool
	var name string
	c := &cobra.Command{
		Use: "carry-out CHANGE", Short: "Do what an approved change says, once it has waited", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeArg(0, a.changeNumbers),
		Long: `Carries out a change that had its approvals and has waited since, as what can't be undone does
(approvals.acts[].delay in the bundle). Until then it can be rejected; within a week after it, this
can be done by who proposed the change, or may approve such changes. Nothing does it by itself.`,
		Example: "  bailment change list --open\n  bailment change carry-out 97",
		RunE: a.call(func(ctx context.Context, c *conn, args []string) error {
			n, err := number(args[0], "change")
			if err != nil {
				return err
			}
			v, err := c.reviewChange(ctx, n)
			if err != nil {
				return err
			}
			if v.text.Action == policy.ActExport {
				return problem.New(problem.ReasonInvalid, "change %d is fetched, by who proposed it", n).WithFix("`bailment secret export --change %d --out FILE`", n)
			}
			if v.text.Action == policy.ActDeleteEnvironment {
				if err := a.confirmEnd(v.text.Target, name); err != nil {
					return err
				}
			} else if !yes {
				if err := a.confirm("carry out %s, about %s? It can't be undone", printable(v.text.Action), printable(v.text.Target)); err != nil {
					return err
				}
			}
			r, err := c.Changes.CarryOut(ctx, &v1.CarryOutRequest{Change: n})
			if err != nil {
				return err
			}
			return a.show(r, func(t *rows) { t.line("change %d is %s (entry %d)", n, r.Change.GetState(), r.Entry.GetIndex()) })
		}),
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	c.Flags().StringVar(&name, "name", "", "to end an environment: its name, instead of being asked for it")
	return c
}

// waits says whether a change waits, or will: by the bundle that it is based on, which was checked here.
func (v *review) waits(now time.Time) string {
	if info := v.proposal.Change; v.text.Action == policy.ActExport {
		return exportMeaning(info, now)
	} else if info.GetDue() != nil {
		if now.Before(info.Due.AsTime()) {
			return dueText(info)
		}
		return fmt.Sprintf("it has waited, and can be carried out until %s: bailment change carry-out %d", info.Ends.AsTime().Format(time.RFC3339), info.Change)
	}
	base, err := accepted(v.base.files)
	if err != nil {
		return ""
	}
	if need := base.Environment().Needs(v.text.Action); need.Delay > 0 {
		return fmt.Sprintf("it can't be undone: it waits for %s after the last of %d approvals, and can be rejected until it is carried out", need.Delay, need.Approvals)
	}
	return ""
}

func dueText(x *v1.ChangeInfo) string {
	return fmt.Sprintf("it waits until %s, and can be rejected until it is carried out: bailment change reject %d", x.Due.AsTime().Format(time.RFC3339), x.Change)
}
