package agent

import (
	"context"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
)

// Appraise asks what the server would say to this machine's evidence, with a key that is used for nothing else. It does not touch the
// state directory, so it can be asked beside an agent that runs. Evidence that counts once is shown, and not used up.
func (a *Agent) Appraise(ctx context.Context) (*v1.AppraiseResponse, error) {
	t, err := client.Bootstrap(ctx, a.cfg.Bootstrap, client.Options{Dialer: a.cfg.Dialer})
	if err != nil {
		return nil, err
	}
	c, err := client.Dial(t, client.Options{Dialer: a.cfg.Dialer, Agent: a.statement})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	material, _, err := a.material()
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, text := range material {
			clear(text)
		}
	}()
	attester, err := attest.Methods{a.method}.NewAttesterFrom(a.method.Name, material)
	if err != nil {
		return nil, err
	}
	key, err := client.NewKey()
	if err != nil {
		return nil, err
	}
	return c.Appraise(ctx, a.method.Name, attester, key)
}
