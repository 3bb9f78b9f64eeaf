package servertest

import (
	"fmt"

	"github.com/bailment/bailment/internal/policy"
)

// Bundle is the founding bundle: alice may do everything but read, bob approves and audits, machines join by
// token, and /workload/app on any of them reads app/*.
func Bundle(name string, p People) policy.Files {
	return policy.Files{
		"environment.yaml": []byte(fmt.Sprintf(`apiVersion: bailment/v1
kind: Environment
metadata:
  name: %s
spec:
  class: development
  approvals:
    required: 0
`, name)),
		"operators.yaml": []byte(fmt.Sprintf(`apiVersion: bailment/v1
kind: Operators
metadata:
  name: operators
spec:
  operators:
    - name: alice
      keys: [%s]
      duties: [propose, approve, revoke, admit, keys, audit]
    - name: bob
      keys: [%s]
      duties: [approve]
`, p.Line("alice"), p.Line("bob"))),
		"identities/machines.yaml": []byte(`apiVersion: bailment/v1
kind: Identity
metadata:
  name: machines
spec:
  method: join-token
  path: /node/join-token/{claims.name}
---
apiVersion: bailment/v1
kind: Identity
metadata:
  name: app
spec:
  method: workload
  path: /workload/app
  nodes: [/node/join-token/*]
`),
		"grants/grants.yaml": []byte(`apiVersion: bailment/v1
kind: Grant
metadata:
  name: alice-provisions
spec:
  actions: [secret.write, secret.generate, secret.list, secret.destroy, secret.promote]
  identities: [/human/alice]
  secrets: ["*"]
---
apiVersion: bailment/v1
kind: Grant
metadata:
  name: app-reads
spec:
  actions: [secret.read, secret.list]
  identities: [/workload/app]
  secrets: [app/*]
  purposes: [runtime]
  assurance: token
`),
		"secrets/app.yaml": []byte(`apiVersion: bailment/v1
kind: Secret
metadata:
  name: app/password
spec:
  type: opaque
---
apiVersion: bailment/v1
kind: Secret
metadata:
  name: app/other
spec:
  type: opaque
`),
	}
}
