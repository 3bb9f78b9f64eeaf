package agent

import (
	"context"
	"crypto"

	v1 "github.com/bailment/bailment/api/bailment/v1"
	"github.com/bailment/bailment/client"
	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/problem"
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
	attester, _, done, err := a.attester()
	if err != nil {
		return nil, problem.As(err)
	}
	defer done()
	key, err := a.appraisedKey(ctx, attester)
	if err != nil {
		return nil, err
	}
	return c.Appraise(ctx, a.method.Name, own(attester), key)
}

// appraisedKey is a key like the session's would be, so that what is claimed of its place is the same.
func (a *Agent) appraisedKey(ctx context.Context, attester attest.Attester) (crypto.Signer, error) {
	maker, ok := attester.(attest.KeyMaker)
	if !a.cfg.HardwareKey || !ok {
		return client.NewKey()
	}
	key, _, err := ownKeys{maker}.NewKey(ctx)
	return key, err
}
