package rpc

import (
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/bailment/bailment/api/bailment/v1"
	api "github.com/bailment/bailment/api/bailment/v1/bailmentv1connect"
)

// The methods that ask for no session, and what they prove. Whatever is not in this table asks for one.
var public = map[string]string{
	api.EnvironmentServiceGetEnvironmentProcedure: "",
	api.AttestationServiceChallengeProcedure:      "",
	api.AttestationServiceAttestProcedure:         accountUnknown,
	api.AttestationServiceAppraiseProcedure:       accountUnknown,
	api.AttestationServiceRenewProcedure:          accountRenewal,
	api.AttestationServiceLoginProcedure:          accountLogin,
	api.RecoveryServiceGetRecoveryProcedure:       "",
	api.RecoveryServiceStartRecoveryProcedure:     accountRecovery,
	api.RecoveryServiceWithdrawRecoveryProcedure:  accountRecovery,
	api.LedgerServiceGetCheckpointProcedure:       "",
	api.LedgerServiceGetConsistencyProcedure:      "",
}

// mount makes a route of every method of the wire, so that none is reachable without its limits.
func (a *API) mount(options []connect.HandlerOption) {
	handlers := make(map[string]http.Handler)
	add := func(path string, h http.Handler) { handlers[path] = h }
	add(api.NewEnvironmentServiceHandler(environments{a}, options...))
	add(api.NewAttestationServiceHandler(attestations{a}, options...))
	add(api.NewSecretServiceHandler(secrets{a}, options...))
	add(api.NewRevocationServiceHandler(revocations{a}, options...))
	add(api.NewChangeServiceHandler(changes{a}, options...))
	add(api.NewExplainServiceHandler(explanations{a}, options...))
	add(api.NewAccessServiceHandler(accesses{a}, options...))
	add(api.NewBreakGlassServiceHandler(glasses{a}, options...))
	add(api.NewLedgerServiceHandler(ledgers{a}, options...))
	add(api.NewKeyServiceHandler(keys{a}, options...))
	add(api.NewWatchServiceHandler(watches{a}, options...))
	add(api.NewSpiffeServiceHandler(spiffes{a}, options...))
	add(api.NewRecoveryServiceHandler(recoveries{attestations{a}}, options...))
	direct := a.directs()
	for _, file := range []protoreflect.FileDescriptor{pb.File_bailment_v1_bailment_proto, pb.File_bailment_v1_spiffe_proto, pb.File_bailment_v1_recovery_proto} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			h := handlers["/"+string(s.FullName())+"/"]
			for j := range s.Methods().Len() {
				path := procedure(s.Methods().Get(j))
				a.routes[path] = a.routeOf(h, s, s.Methods().Get(j))
				a.routes[path].direct = direct[path]
			}
		}
	}
}

func procedure(m protoreflect.MethodDescriptor) string {
	return "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
}

func (a *API) routeOf(h http.Handler, s protoreflect.ServiceDescriptor, m protoreflect.MethodDescriptor) *route {
	path := procedure(m)
	r := &route{handler: h, stream: m.IsStreamingServer()}
	r.proof, r.public = public[path]
	r.secret = path == api.SecretServiceGetProcedure || path == api.SpiffeServiceIssueJWTProcedure || path == api.ChangeServiceCarryOutProcedure
	r.bundle = path == api.ChangeServiceProposeProcedure
	if a.o.Meter != nil {
		r.meter = a.o.Meter(strings.TrimSuffix(string(s.Name()), "Service"), string(m.Name()))
	}
	return r
}
