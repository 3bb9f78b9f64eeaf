package clienttest

import (
	"context"

	v1 "github.com/bailment/bailment/api/bailment/v1"
)

// Sessions is how many sessions were opened and neither given back nor swept.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.state.sessions)
}

func (a attestation) Logout(ctx context.Context, _ *v1.LogoutRequest) (*v1.LogoutResponse, error) {
	s := a.s
	s.mu.Lock()
	defer s.mu.Unlock()
	x, err := s.caller(ctx, false)
	if err != nil {
		return nil, err
	}
	for index, other := range s.state.sessions {
		if other == x {
			delete(s.state.sessions, index)
		}
	}
	return &v1.LogoutResponse{}, nil
}
