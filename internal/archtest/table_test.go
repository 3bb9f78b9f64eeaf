package archtest_test

import "github.com/bailment/bailment/internal/archtest"

const module = "github.com/bailment/bailment"

// table is the import graph of the house (DESIGN.md §14), from the bottom to the top:
//
//	cli → server | agent → rpc, dashboard → control → mechanisms → pure
//
// Mechanisms (attest, keyring, ledger, store's drivers) don't import each other; server is the only
// importer of drivers, with one exception: cli opens a directory to verify it without a server.
// What ends in "test" (storetest, holdertest) is a contract, executable: no row names it, so only
// tests import it.
var table = []archtest.Row{
	// Public leaves: what an outsider may import and audit without the rest.
	{"api/...", "", "google.golang.org/protobuf connectrpc.com/connect"},
	{"verify", "", "golang.org/x/mod"},
	{"examples", "", ""},

	// Leaves.
	{"internal/problem", "", ""},
	{"internal/identity", "", ""},
	{"internal/authority", "", "github.com/go-jose/go-jose/v4 golang.org/x/crypto"},
	{"internal/spelling", "", ""},
	{"internal/spiffe", "", "github.com/go-jose/go-jose/v4 github.com/go-json-experiment/json"},
	{"internal/cache", "", ""},
	{"internal/archtest", "", ""},

	// Pure: values in, values out.
	{"internal/durable", "internal/problem", "golang.org/x/sys"},
	{"internal/hardening", "internal/problem", "golang.org/x/sys"},
	{"internal/canary", "", ""},
	{"internal/sshsig", "internal/problem", "github.com/hiddeco/sshsig golang.org/x/crypto"},
	{"internal/release", "internal/problem internal/sshsig", "golang.org/x/crypto"},
	{"internal/release/own", "internal/problem internal/release internal/sshsig", ""},
	{"internal/seal", "internal/problem", "golang.org/x/sys"},
	{"internal/seal/sealtest", "", ""},
	{"internal/ceremony", "internal/problem internal/identity", ""},
	{"internal/export", "", "filippo.io/age"},
	{"internal/policy", "internal/problem internal/identity internal/spiffe internal/authority internal/release internal/sshsig internal/spelling", "cel.dev/cel-go cel.dev/expr github.com/goccy/go-yaml golang.org/x/crypto google.golang.org/protobuf"},
	{"internal/policy/policytest", "examples internal/policy", ""},
	{"internal/plan", "internal/problem internal/identity internal/authority internal/release internal/policy", ""},
	{"internal/reach/flow", "", ""},
	{"internal/reach", "internal/problem internal/identity internal/policy internal/reach/flow", ""},
	{"internal/reach/picture", "internal/reach", ""},
	{"internal/state", "internal/problem internal/identity internal/spiffe internal/ceremony internal/policy", "github.com/tidwall/btree github.com/go-json-experiment/json github.com/klauspost/compress"},
	{"internal/store", "verify", ""},

	// Mechanisms.
	{"internal/attest", "internal/problem internal/identity internal/authority", "github.com/go-jose/go-jose/v4"},
	{"internal/attest/attesttest", "internal/problem internal/attest", ""},
	{"internal/attest/jwt", "internal/problem internal/authority internal/attest", "github.com/go-jose/go-jose/v4 github.com/go-json-experiment/json"},
	{"internal/attest/cms", "internal/problem", "golang.org/x/crypto"},
	{"internal/attest/cms/cmstest", "internal/attest/cms", "github.com/smallstep/pkcs7"},
	{"internal/attest/metadata", "internal/problem", ""},
	{"internal/attest/aws", "internal/problem internal/identity internal/authority internal/attest internal/attest/cms internal/attest/metadata", "github.com/go-json-experiment/json"},
	{
		"internal/attest/azure", "internal/problem internal/identity internal/authority internal/attest internal/attest/cms internal/attest/jwt internal/attest/metadata",
		"github.com/go-jose/go-jose/v4 github.com/go-json-experiment/json",
	},
	{"internal/attest/jointoken", "internal/problem internal/identity internal/attest", ""},
	{"internal/attest/x509", "internal/problem internal/identity internal/authority internal/attest", ""},
	{"internal/attest/sshhost", "internal/problem internal/identity internal/authority internal/sshsig internal/attest", "golang.org/x/crypto"},
	{"internal/attest/tsm", "internal/problem", ""},
	{"internal/attest/sevsnp", "internal/problem internal/identity internal/authority internal/attest internal/attest/tsm", "github.com/google/go-sev-guest"},
	{"internal/attest/sevsnp/snptest", "internal/attest/tsm", "github.com/google/go-sev-guest"},
	{"internal/attest/tdx", "internal/problem internal/identity internal/authority internal/attest internal/attest/tsm", "github.com/google/go-tdx-guest"},
	{"internal/attest/tdx/tdxtest", "internal/attest/tsm", "github.com/google/go-tdx-guest"},
	{"internal/attest/tpm/ima", "internal/problem", ""},
	{"internal/attest/tpm", "internal/problem internal/identity internal/authority internal/attest internal/attest/tpm/ima", "github.com/google/go-tpm"},
	{"internal/attest/tpm/tpmtest", "", "github.com/google/go-tpm"},
	{"internal/attest/jwt/jwttest", "internal/problem internal/attest", "github.com/go-jose/go-jose/v4"},
	{"internal/attest/platform", "internal/problem internal/identity internal/authority internal/attest internal/attest/jwt", "github.com/go-jose/go-jose/v4"},
	{"internal/attest/gcp", "internal/problem internal/attest internal/attest/jwt internal/attest/platform", ""},
	{"internal/attest/k8s", "internal/problem internal/attest internal/attest/jwt internal/attest/platform", ""},
	{"internal/attest/ci", "internal/problem internal/attest internal/attest/jwt internal/attest/platform internal/attest/k8s", ""},
	{"internal/attest/platform/platformtest", "internal/problem internal/authority internal/attest internal/attest/attesttest internal/attest/jwt/jwttest internal/attest/platform internal/attest/ci internal/attest/gcp internal/attest/k8s", "github.com/go-jose/go-jose/v4"},
	{"internal/issuers", "internal/problem internal/authority", "github.com/go-jose/go-jose/v4"},
	{"internal/attest/methods", "internal/attest internal/attest/sevsnp internal/attest/sshhost internal/attest/tdx internal/attest/aws internal/attest/ci internal/attest/gcp internal/attest/jointoken internal/attest/k8s internal/attest/x509 internal/attest/azure internal/attest/tpm", ""},
	{"internal/keyring", "internal/problem internal/seal internal/durable", "golang.org/x/sys"},
	{"internal/keyring/holdertest", "internal/problem internal/seal internal/keyring", ""},
	{"internal/keyring/file", "internal/problem internal/seal internal/durable internal/keyring", "golang.org/x/sys"},
	{"internal/keyring/holders", "internal/problem internal/seal internal/keyring internal/keyring/file", ""},
	{"internal/ledger", "internal/problem internal/store verify", "golang.org/x/mod golang.org/x/sync golang.org/x/sys"},
	{"internal/store/sqlite", "internal/problem internal/store internal/durable", "modernc.org/sqlite golang.org/x/sys"},
	{"internal/store/storetest", "internal/store", "golang.org/x/mod pgregory.net/rapid"},

	{"internal/custody", "internal/ceremony internal/problem internal/identity internal/spiffe internal/seal internal/keyring internal/state internal/store", "golang.org/x/mod"},

	{"internal/federation", "internal/problem internal/spiffe", "github.com/spiffe/go-spiffe/v2"},

	{"internal/notify", "internal/ceremony internal/policy internal/state", ""},

	// The use cases, and what watches them.
	{"internal/invariant", "internal/problem internal/identity internal/authority internal/spiffe internal/policy internal/release internal/state", ""},
	{
		"internal/control", "internal/export internal/problem internal/identity internal/authority internal/release internal/policy internal/plan internal/reach internal/state internal/seal internal/sshsig internal/ceremony internal/durable internal/canary internal/cache internal/spiffe " +
			"internal/attest internal/attest/jointoken internal/keyring internal/custody internal/ledger internal/store internal/invariant verify",
		"golang.org/x/mod golang.org/x/crypto golang.org/x/sync golang.org/x/time github.com/go-jose/go-jose/v4",
	},

	{
		"internal/control/controltest", "internal/control internal/release internal/spiffe internal/problem internal/identity internal/policy internal/state internal/seal internal/sshsig internal/ceremony internal/attest internal/attest/jointoken internal/attest/methods " +
			"internal/attest/jwt/jwttest internal/attest/platform/platformtest internal/keyring internal/keyring/file internal/ledger internal/store internal/store/sqlite internal/invariant verify",
		"github.com/go-jose/go-jose/v4 golang.org/x/crypto",
	},

	// Edges and roles.
	{"client", "api/... verify internal/attest internal/ceremony internal/durable internal/problem internal/identity internal/seal", "connectrpc.com/connect google.golang.org/protobuf golang.org/x/mod golang.org/x/net"},
	{"client/clienttest", "api/... client verify internal/...", "connectrpc.com/connect google.golang.org/protobuf golang.org/x/mod golang.org/x/crypto"},
	{
		"internal/rpc", "api/... internal/cache internal/canary internal/control internal/release internal/problem internal/identity internal/policy internal/state internal/attest internal/ceremony internal/ledger internal/store internal/seal verify",
		"connectrpc.com/connect google.golang.org/protobuf golang.org/x/time golang.org/x/net",
	},
	{"internal/agent/localapi", "internal/attest internal/problem internal/identity", "golang.org/x/sys"},
	{"internal/agent/workloadapi", "api/envoysds/... client internal/agent/localapi internal/cache internal/problem", "github.com/spiffe/go-spiffe/v2 golang.org/x/time google.golang.org/grpc google.golang.org/protobuf"},
	{"internal/agent/workload/kubelet", "internal/attest internal/problem", ""},
	{"internal/agent/workload", "internal/agent/localapi internal/agent/workload/kubelet internal/attest internal/problem", "golang.org/x/sys"},
	{"internal/run", "internal/agent/localapi internal/problem internal/identity internal/hardening", "golang.org/x/sys"},
	{"internal/job", "api/... client internal/attest internal/attest/ci internal/attest/jwt internal/problem internal/identity internal/run", "golang.org/x/sys"},
	{"internal/audit", "verify internal/ceremony internal/identity internal/invariant internal/ledger internal/policy internal/problem internal/sshsig internal/state internal/store", "golang.org/x/mod golang.org/x/crypto"},
	{"internal/config", "internal/problem internal/identity internal/attest internal/spelling", "github.com/goccy/go-yaml"},
	{
		"internal/agent", "api/... client verify internal/release internal/agent/localapi internal/agent/workloadapi internal/attest internal/attest/methods internal/config internal/durable internal/hardening internal/seal internal/problem internal/identity internal/agent/workload internal/agent/workload/kubelet internal/spiffe",
		"connectrpc.com/connect google.golang.org/protobuf golang.org/x/sys github.com/coreos/go-systemd/v22",
	},
	{
		"internal/server", "internal/rpc internal/canary internal/issuers internal/federation internal/notify internal/spiffe internal/control internal/config internal/attest/... internal/keyring internal/keyring/file internal/keyring/holders internal/ledger internal/store internal/store/sqlite " +
			"internal/state internal/policy internal/invariant internal/seal internal/durable internal/hardening internal/problem internal/identity api/... verify",
		"github.com/prometheus/client_golang github.com/prometheus/client_model github.com/coreos/go-systemd/v22 connectrpc.com/connect golang.org/x/sync golang.org/x/time golang.org/x/sys golang.org/x/net",
	},
	{
		"internal/server/servertest", "internal/server internal/config internal/control internal/problem internal/identity internal/policy internal/state internal/seal internal/sshsig internal/ceremony internal/attest " +
			"internal/attest/jointoken internal/attest/methods internal/store client api/... verify",
		"golang.org/x/crypto connectrpc.com/connect google.golang.org/protobuf",
	},
	{"internal/quickstart", "examples internal/durable internal/problem internal/identity internal/sshsig internal/seal", "golang.org/x/crypto golang.org/x/sys"},
	{
		"internal/cli", "api/... client verify examples internal/server internal/agent internal/agent/localapi internal/agent/workload/kubelet internal/run internal/audit internal/invariant internal/export internal/config internal/quickstart internal/control internal/policy internal/plan internal/reach internal/reach/picture internal/state internal/job " +
			"internal/seal internal/sshsig internal/ceremony internal/keyring internal/keyring/holders internal/ledger internal/store internal/store/sqlite internal/attest/... internal/durable internal/hardening " +
			"internal/problem internal/identity internal/authority internal/release/... internal/spelling",
		"github.com/go-jose/go-jose/v4 github.com/spf13/cobra github.com/spf13/pflag github.com/spiffe/go-spiffe/v2 google.golang.org/grpc github.com/goccy/go-yaml github.com/rogpeppe/go-internal/diff golang.org/x/term golang.org/x/crypto golang.org/x/mod golang.org/x/sys google.golang.org/protobuf connectrpc.com/connect",
	},
	{"cmd/bailment", "internal/cli", ""},
	{"cmd/release", "internal/problem internal/release internal/sshsig", "golang.org/x/crypto"},

	// Tests of the whole binary.
	{"test/e2e", "", ""},
	{"test/faults", "", ""},
	{"test/hostile", "", ""},
	{"test/site", "api/... client verify internal/...", "golang.org/x/crypto golang.org/x/mod google.golang.org/protobuf"},
	{"test/site/sitetest", "api/... client verify internal/... test/site", "golang.org/x/crypto golang.org/x/mod golang.org/x/sys"},
	{"test/bench", "api/... client verify internal/... test/site", "golang.org/x/crypto github.com/spiffe/go-spiffe/v2 google.golang.org/protobuf"},
}
