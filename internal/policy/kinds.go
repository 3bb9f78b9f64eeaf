package policy

import "time"

// APIVersion is the version that every document names.
const APIVersion = "bailment/v1"

// The kinds of documents.
const (
	kindEnvironment = "Environment"
	kindOperators   = "Operators"
	kindAuthority   = "Authority"
	kindIdentity    = "Identity"
	kindGrant       = "Grant"
	kindSecret      = "Secret"
	kindTest        = "Test"
)

// place says where documents of a kind live.
type place struct {
	kind   string
	single bool // exactly one document, in a file at the top
	what   string
}

// places is the layout of a bundle: a file at the top, or a directory.
var places = map[string]place{
	"environment": {kindEnvironment, true, "the environment's settings"},
	"operators":   {kindOperators, true, "the persons and their keys"},
	"authorities": {kindAuthority, false, "what attestation trusts: roots, issuers and reference values"},
	"identities":  {kindIdentity, false, "rules that turn proved claims into an identity"},
	"grants":      {kindGrant, false, "permissions and prohibitions"},
	"secrets":     {kindSecret, false, "the secrets that exist"},
	"federation":  {kindFederation, false, "relations with other trust domains"},
	"rollouts":    {kindRollout, false, "by which steps a change comes into force, and what brings the earlier bundle back"},
	"tests":       {kindTest, false, "what the rules must and must not permit"},
}

// unready are parts of the design that have no effect yet. They are refused, because a rule that
// is silently ignored is worse than none.
var unready = map[string]string{
	"engines": "Engine", "alerts": "Alert", "risks": "Risk",
}

// ignoredExtensions are files that may accompany a bundle. They are in the manifest.
var ignoredExtensions = []string{".md", ".txt"}

// The spec of each kind, as it is written. Tags: yaml is the field's name, need says that it must
// be given, doc, enum and default feed the JSON Schema.
type (
	metadataSpec struct {
		Name        text `yaml:"name" need:"true" doc:"Unique among the documents of this kind."`
		Description text `yaml:"description" doc:"For people."`
	}

	environmentSpec struct {
		At        Pos
		Class     text `yaml:"class" need:"true" enum:"development,production" doc:"What kind of environment this is, for ever. Development allows one operator and a root key in a file."`
		Approvals struct {
			Required number    `yaml:"required" doc:"How many distinct persons other than the proposer must approve a change. Production: 1 or more, and 1 by default. Development: 0 by default."`
			Keys     text      `yaml:"keys" enum:"any,hardware" default:"any" doc:"hardware: approvals count by hardware-backed keys (sk-) only, which a person touches for each signature."`
			Acts     []actSpec `yaml:"acts" doc:"What some acts ask for beyond that."`
		} `yaml:"approvals" doc:"What a change needs to come into force."`
		Sessions struct {
			Node     period `yaml:"node" default:"1h" doc:"Lifetime of a node's session, 1m to 24h."`
			Workload period `yaml:"workload" default:"10m" doc:"Lifetime of a workload's session, 1m to 1h."`
			Operator period `yaml:"operator" default:"15m" doc:"Lifetime of an operator's login, 1m to 12h."`
		} `yaml:"sessions" doc:"How long a proof of identity lasts."`
		Leases struct {
			Default period `yaml:"default" default:"1h" doc:"Lifetime of a lease when nobody says otherwise."`
			Max     period `yaml:"max" default:"24h" doc:"No lease lasts longer; at most 720h."`
		} `yaml:"leases" doc:"How long a hand-over lasts."`
		Revocation struct {
			BlastLimit number `yaml:"blastLimit" default:"1000" doc:"How many identities one operator may cut off at once without a quorum."`
		} `yaml:"revocation" doc:"Taking back."`
		BreakGlass struct {
			Openings number `yaml:"openings" default:"4" doc:"How often in a quarter of a year (UTC) a grant with breakGlass may be opened without approvals, all grants and persons together; 0 to 1000. Beyond it, and while an earlier opening is not reviewed, it takes the approvals of the act glass.open."`
			Alarm    number `yaml:"alarm" default:"1" doc:"The share of the quarter's releases, in percent, from which on releases by grants with breakGlass raise the alarm, 1 to 100."`
		} `yaml:"breakGlass" doc:"Grants for emergencies."`
		Limits struct {
			Secrets           number `yaml:"secrets" default:"100000" doc:"How many secrets may exist, up to 1000000."`
			VersionsPerSecret number `yaml:"versionsPerSecret" default:"100" doc:"How many versions of a secret may be kept, up to 10000."`
			ValueBytes        number `yaml:"valueBytes" default:"65536" doc:"Size of a value in bytes, up to 65536."`
		} `yaml:"limits" doc:"Upper bounds of what may be stored."`
		Nodes struct {
			Lifetime period `yaml:"lifetime" default:"2160h" doc:"Hard lifetime of an enrolment: a node older than this joins again. Shortening it reaches the nodes that there are with their next renewal; lengthening it does not. 1h to 17520h."`
		} `yaml:"nodes" doc:"Machines."`
		Agents struct {
			Signers  []text `yaml:"signers" doc:"SSH public keys that sign releases. Agents show a release's manifest that one of them signed."`
			Minimum  text   `yaml:"minimum" doc:"No older agent runs: a version such as 1.4.0. It is lowered by a named rollback only."`
			Require  text   `yaml:"require" enum:"any,signed,measured" doc:"What is asked of agents: any (development only, and its default), signed (default in production), or measured: their platform must have measured the program that they are."`
			Rollback text   `yaml:"rollback" doc:"Names the rollback by which this bundle lowers minimum or require, such as an incident's number. Each one is named anew."`
		} `yaml:"agents" doc:"Which agents may run."`
		SPIFFE      spiffeSpec   `yaml:"spiffe" doc:"How this environment is known to others: its trust bundle and its tokens."`
		Notify      []notifySpec `yaml:"notify" doc:"Who is told of changes and revocations. At most 16."`
		Recovery    recoverySpec `yaml:"recovery" doc:"Who may replace the operators, and nothing else, when they can't do it themselves: a last resort."`
		Authorities []rootsSpec  `yaml:"authorities" doc:"Certificate authorities whose certificates x509 identities may present: a short form of an Authority for x509."`
	}

	actSpec struct {
		At       Pos
		Act      text   `yaml:"act" need:"true" enum:"bundle,hold.lift,revocation.confirm,evidence.forget,identity.decommission,secret.destroy,glass.open,secret.export,environment.delete,custody.move" doc:"Which act."`
		Required number `yaml:"required" doc:"How many approvals it takes; not fewer than approvals.required, and for secret.export, environment.delete and custody.move in production not fewer than 2."`
		Keys     text   `yaml:"keys" enum:"any,hardware" doc:"hardware: by hardware-backed keys only."`
		Delay    period `yaml:"delay" doc:"For how long it waits after the last approval it needs, in which it can be taken back; at most 720h. For what can't be undone only: identity.decommission, secret.destroy, secret.export, custody.move (0s by default), environment.delete (in production 24h by default, and at least)."`
	}

	rootsSpec struct {
		At   Pos
		Name text `yaml:"name" need:"true" doc:"What identity rules call it."`
		PEM  text `yaml:"pem" need:"true" doc:"One or more CA certificates."`
	}

	authoritySpec struct {
		At              Pos
		Method          text            `yaml:"method" need:"true" enum:"x509,sshhost,k8s,aws,gcp,azure,tpm,sev-snp,tdx,github,gitlab,buildkite,circleci,k8s-job,oidc" doc:"The attestation method whose evidence it judges."`
		Source          text            `yaml:"source" doc:"Where the roots are from, for people: an address, a document, a person."`
		Imported        text            `yaml:"imported" doc:"When somebody looked there (RFC 3339), for people."`
		PEM             text            `yaml:"pem" doc:"Certificates that are trusted. With an issuer: the roots of its HTTPS certificate, instead of the system's."`
		SSHKeys         []text          `yaml:"sshKeys" doc:"sshhost: public keys of SSH certificate authorities."`
		Hosts           []hostSpec      `yaml:"hosts" doc:"sshhost: hosts' public keys that are trusted without a certificate."`
		Issuer          text            `yaml:"issuer" doc:"The exact issuer (iss) of the tokens, an https address."`
		Keys            text            `yaml:"keys" doc:"The issuer's keys, pinned, as a JSON Web Key Set: then nobody is asked for them."`
		KeysURL         text            `yaml:"keysURL" doc:"Where the issuer's keys are, if its discovery document is not to be asked, an https address."`
		EndorsementKeys []text          `yaml:"endorsementKeys" doc:"tpm: endorsement keys that are trusted without a certificate, as sha256: and the digest of the SubjectPublicKeyInfo."`
		PCRs            []number        `yaml:"pcrs" doc:"tpm: the PCRs (0 to 23) that must be quoted, of the SHA-256 bank. Default: 0, 1, 2, 3, 4, 6, 7, 8, 9, 14."`
		References      []referenceSpec `yaml:"references" doc:"tpm: what machines may have booted. A machine fits if it fits one set whose window is open."`
		MaxAge          period          `yaml:"maxAge" doc:"aws, azure: how old evidence may be that holds no challenge of ours, 1m to 8760h."`
	}

	hostSpec struct {
		At   Pos
		Name text `yaml:"name" need:"true" doc:"The host, as claims.hostname."`
		Key  text `yaml:"key" need:"true" doc:"Its SSH public key."`
	}

	referenceSpec struct {
		At      Pos
		Name    text      `yaml:"name" need:"true" doc:"Which machines' software it is, as claims.boot.name."`
		Version text      `yaml:"version" need:"true" doc:"Which version of it, as claims.boot.version."`
		From    text      `yaml:"from" doc:"From when on it is good (RFC 3339)."`
		Until   text      `yaml:"until" doc:"Until when it is good (RFC 3339): give the old set an end when a new one is brought."`
		PCRs    []pcrSpec `yaml:"pcrs" doc:"Values that are good."`
		Events  []text    `yaml:"events" doc:"Digests of measured components that are good, as sha256: and 64 hexadecimal digits."`
		Signers []text    `yaml:"signers" doc:"Digests of Secure Boot certificates: a component that is not among the events but was verified by one of them is signed, neither known nor bad."`
	}

	pcrSpec struct {
		At     Pos
		PCR    number `yaml:"pcr" need:"true" doc:"Which, 0 to 23."`
		Values []text `yaml:"values" need:"true" doc:"Any of them is good, as sha256: and 64 hexadecimal digits."`
	}

	operatorsSpec struct {
		At        Pos
		Operators []operatorSpec `yaml:"operators" need:"true" doc:"The persons."`
	}

	operatorSpec struct {
		At     Pos
		Name   text   `yaml:"name" need:"true" doc:"The person; the identity is /human/NAME."`
		Keys   []text `yaml:"keys" need:"true" doc:"SSH public keys, as in authorized_keys: ed25519, ecdsa (nistp256, nistp384), rsa of 3072 to 8192 bits, or hardware-backed (sk-)."`
		Duties []text `yaml:"duties" need:"true" enum:"propose,approve,revoke,admit,keys,audit,approve-bundles,approve-containment,approve-secrets" doc:"What the person may do with the environment itself. Access to secrets needs grants. approve is about every act; its parts are about some."`
	}

	identitySpec struct {
		At        Pos
		Method    text   `yaml:"method" need:"true" enum:"join-token,x509,sshhost,k8s,aws,gcp,azure,tpm,sev-snp,tdx,github,gitlab,buildkite,circleci,k8s-job,oidc,workload" doc:"The attestation method whose claims this rule reads."`
		Path      text   `yaml:"path" need:"true" doc:"The identity: /node/METHOD/… or /ci/METHOD/… with {claims.a.b} as whole segments, or a literal /workload/…"`
		Authority text   `yaml:"authority" doc:"The name of the authority that must have vouched. Not for join-token and workload."`
		When      text   `yaml:"when" doc:"A CEL condition over claims: whether this rule is about them at all."`
		Require   text   `yaml:"require" doc:"A CEL condition over claims: what must be true of a machine that this rule is about, as boot state or agent. Not for workload."`
		Otherwise text   `yaml:"otherwise" enum:"refuse,quarantine" default:"refuse" doc:"What happens when what is required is not true: the proof is refused, or the machine is quarantined as well, if it is enrolled with the same key."`
		Accepts   []text `yaml:"accepts" enum:"every-job,mutable-names,any-branch,pull-requests,no-environment" doc:"Jobs only: what bundle check would advise against, and is meant. Each says whom else the rule is for."`
		Nodes     []text `yaml:"nodes" doc:"workload only: which nodes may speak for it."`
		Session   period `yaml:"session" doc:"Session lifetime, instead of the environment's. CI: 1m to 1h, 10m by default."`
		Lifetime  period `yaml:"lifetime" doc:"CI only: hard end of a job's enrolment, 1m to 24h, 6h by default."`

		FederatesWith []text `yaml:"federatesWith" doc:"workload only: names of the federations whose trust bundles it gets."`
	}

	grantSpec struct {
		At         Pos
		Effect     text   `yaml:"effect" default:"allow" enum:"allow,deny" doc:"Deny wins."`
		Actions    []text `yaml:"actions" need:"true" enum:"secret.read,secret.write,secret.generate,secret.list,secret.destroy,secret.promote" doc:"What is allowed or denied."`
		Identities []text `yaml:"identities" need:"true" doc:"Who: paths, subtrees (/workload/*), or everybody (/*)."`
		Secrets    []text `yaml:"secrets" need:"true" doc:"What: paths, subtrees (db/*), or everything (*)."`
		Purposes   []text `yaml:"purposes" doc:"For which purposes a secret may be read. An allow grant for secret.read must name them; in a deny grant none means any. Other actions have no purpose."`
		Assurance  text   `yaml:"assurance" default:"token" enum:"unbound,token,key,platform,hardware,measured" doc:"The least assurance of the session. Allow grants only."`
		TTL        period `yaml:"ttl" doc:"No lease by this grant lasts longer. Allow grants for secret.read only."`
		When       text   `yaml:"when" doc:"A CEL condition over identity, node, claims, node_claims, request, secret, assurance and time: docs/reference/conditions.md."`
		BreakGlass period `yaml:"breakGlass" doc:"For emergencies: the grant gives nothing until a person opens it, with a reason and an incident, for so long at the most, 1m to 8h. Allow grants to persons only."`
	}

	secretSpec struct {
		At       Pos
		Type     text `yaml:"type" need:"true" enum:"opaque" doc:"The kind of secret."`
		Generate struct {
			At     Pos
			Recipe text   `yaml:"recipe" need:"true" enum:"password,token,hex,base64,uuid,alphanumeric" doc:"How the server makes a value."`
			Length number `yaml:"length" doc:"Characters of a password or alphanumeric value (22 to 512), random bytes of a token, hex or base64 value (16 to 512). Not for uuid. Default 32."`
		} `yaml:"generate" doc:"How the server makes a value."`
		MaxBytes number `yaml:"maxBytes" doc:"Size of a value in bytes; by default the environment's limit."`
		Retain   period `yaml:"retain" doc:"How long the previous version stays readable after a new one, up to 8760h. Default 0: not at all."`
		Lease    struct {
			TTL period `yaml:"ttl" doc:"Lifetime of a lease on this secret when nobody says otherwise."`
			Max period `yaml:"max" doc:"No lease on this secret lasts longer."`
		} `yaml:"lease" doc:"How long a hand-over of this secret lasts."`
		Unlocks []unlockSpec `yaml:"unlocks" doc:"What its value opens, for questions about reach: blast-radius, who-can and limits. It permits nothing."`
	}

	unlockSpec struct {
		At       Pos
		Identity text `yaml:"identity" doc:"An identity of this environment that whoever has the value can pass for, as /ci/github/1/2."`
		System   text `yaml:"system" doc:"A system outside that the value gives access to, by a name of your own, as prod-db."`
		Deploy   text `yaml:"deploy" doc:"The workloads as which whoever has the value can have code run: a path or a subtree, as /workload/shop/*."`
	}
)

// Ceilings and defaults.
const (
	minPeriod          = time.Minute
	maxNodeSession     = 24 * time.Hour
	maxWorkloadSession = time.Hour
	maxOperatorSession = 12 * time.Hour
	maxLease           = 720 * time.Hour
	minNodeLifetime    = time.Hour
	maxJobSession      = time.Hour
	maxJobLifetime     = 24 * time.Hour
	maxEvidenceAge     = 8760 * time.Hour
	maxNodeLifetime    = 17520 * time.Hour
	maxRetain          = 8760 * time.Hour

	defaultNodeSession     = time.Hour
	defaultWorkloadSession = 10 * time.Minute
	defaultOperatorSession = 15 * time.Minute
	defaultLease           = time.Hour
	defaultMaxLease        = 24 * time.Hour
	defaultNodeLifetime    = 2160 * time.Hour
	defaultJobSession      = 10 * time.Minute
	defaultJobLifetime     = 6 * time.Hour

	defaultBlastLimit = 1000
	maxBlastLimit     = 1_000_000
	defaultSecrets    = 100_000
	defaultVersions   = 100
	maxSecrets        = 1_000_000
	maxVersions       = 10_000
	maxValueBytes     = 65536
	maxApprovals      = 16
	maxOperators      = 1000
	maxKeysPerPerson  = 16
	maxNodeRules      = 500     // every two of them are compared
	maxPatterns       = 64      // in one list of a grant or identity
	maxPurposes       = 32      // of a grant
	maxIndexed        = 500_000 // pairs of an identity pattern and a secret pattern, over all grants
)
