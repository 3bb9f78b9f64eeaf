package rpc

import (
	"net/http"

	"github.com/bailment/bailment/internal/problem"
)

// prover is a tracked connection that wants to know which identity it proved.
type prover interface{ Proved(identity string) }

// Proved is the identity, with its environment, that a request's connection proved; empty: none, or its session does not stand now.
// Whether it stands at the head is control's to say, in the method.
func (a *API) Proved(r *http.Request) (identity string) {
	conn := a.connectionOf(r)
	if conn == nil || !conn.stands() {
		return ""
	}
	return conn.key
}

// Refuse answers a request in words without serving it: whoever runs the API has no room for it. It is
// accounted for as other refusals before proof are.
func (a *API) Refuse(w http.ResponseWriter, r *http.Request, p *problem.Problem) {
	conn := a.connectionOf(r)
	if conn == nil {
		http.Error(w, "no environment", http.StatusMisdirectedRequest)
		return
	}
	a.refuse(w, r, &call{api: a, conn: conn}, p)
}
