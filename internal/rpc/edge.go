package rpc

import (
	"net/http"

	"github.com/bailment/bailment/internal/problem"
)

// prover is a tracked connection that wants to know when it proved an identity.
type prover interface{ Proved() }

// Proved reports whether a request came over a connection whose certificate is a good one of its
// environment. Whether the session behind it still stands is control's to say, in the method.
func (a *API) Proved(r *http.Request) bool {
	conn := a.connectionOf(r)
	return conn != nil && conn.refused == nil
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
