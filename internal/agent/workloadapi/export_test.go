package workloadapi

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	sds "github.com/bailment/bailment/api/envoysds/v1"
)

// ParseDiscovery shows what is read of a request of Envoy's.
func ParseDiscovery(text []byte) (string, error) {
	r := new(sds.DiscoveryRequest)
	err := proto.Unmarshal(text, r)
	return fmt.Sprint(r.VersionInfo, " ", r.ResourceNames, " ", r.TypeUrl, " ", r.ResponseNonce, " ", r.ErrorDetail.GetCode(), " ", r.ErrorDetail.GetMessage()), err
}

// KeepBundles keeps the trust bundles until ctx ends, as Serve does.
func (s *Server) KeepBundles(ctx context.Context) { s.bundles.keep(ctx) }
