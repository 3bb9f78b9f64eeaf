package problem

// Reason is a stable, machine-readable cause. Programs may match on it; it never changes meaning.
type Reason string

// The closed table of reasons. A new one is one constant and one row.
const (
	ReasonInternal         Reason = "internal"
	ReasonInvalid          Reason = "invalid"
	ReasonTooLarge         Reason = "too-large"
	ReasonNotProved        Reason = "not-proved"
	ReasonNoSession        Reason = "no-session"
	ReasonSessionExpired   Reason = "session-expired"
	ReasonSessionForeign   Reason = "session-foreign"
	ReasonSessionUnknown   Reason = "session-unknown"
	ReasonTokenUnknown     Reason = "token-unknown"
	ReasonTokenExpired     Reason = "token-expired"
	ReasonTokenSpent       Reason = "token-spent"
	ReasonTokenForeign     Reason = "token-foreign"
	ReasonBadProof         Reason = "bad-proof"
	ReasonBadChain         Reason = "bad-chain"
	ReasonReplayed         Reason = "replayed"
	ReasonChallengeExpired Reason = "challenge-expired"
	ReasonChallengeForeign Reason = "challenge-foreign"
	ReasonKeySeen          Reason = "key-seen"
	ReasonUnknownMethod    Reason = "unknown-method"
	ReasonNoIdentity       Reason = "no-identity"
	ReasonAmbiguous        Reason = "ambiguous-identity"
	ReasonForeignNode      Reason = "foreign-node"
	ReasonLifetimeOver     Reason = "lifetime-over"
	ReasonForked           Reason = "forked"
	ReasonNoGrant          Reason = "no-grant"
	ReasonDenied           Reason = "denied"
	ReasonAssurance        Reason = "assurance-too-low"
	ReasonPurpose          Reason = "purpose"
	ReasonCondition        Reason = "condition"
	ReasonGlass            Reason = "break-glass"
	ReasonGlassBudget      Reason = "break-glass-budget"
	ReasonGlassReview      Reason = "break-glass-review"
	ReasonCutoff           Reason = "cutoff"
	ReasonHeld             Reason = "held"
	ReasonDuty             Reason = "duty"
	ReasonSeparation       Reason = "separation"
	ReasonQuorum           Reason = "quorum"
	ReasonWaiting          Reason = "waiting"
	ReasonBlastLimit       Reason = "blast-limit"
	ReasonLastQuorum       Reason = "last-quorum"
	ReasonNotFound         Reason = "not-found"
	ReasonNoVersion        Reason = "no-version"
	ReasonConflict         Reason = "conflict"
	ReasonStale            Reason = "stale"
	ReasonKeyReused        Reason = "idempotency-key-reused"
	ReasonKeyLimit         Reason = "idempotency-key-limit"
	ReasonLifecycle        Reason = "lifecycle"
	ReasonExists           Reason = "exists"
	ReasonRateLimited      Reason = "rate-limited"
	ReasonOverloaded       Reason = "overloaded"
	ReasonLimit            Reason = "limit"
	ReasonTooSlow          Reason = "too-slow"
	ReasonClock            Reason = "clock"
	ReasonStore            Reason = "store"
	ReasonStoreFull        Reason = "store-full"
	ReasonStarting         Reason = "starting"
	ReasonStopping         Reason = "stopping"
	ReasonUnreachable      Reason = "unreachable"
	ReasonNoAgent          Reason = "no-agent"
	ReasonUnknownOutcome   Reason = "unknown-outcome"
	ReasonEntropy          Reason = "entropy"
	ReasonCanceled         Reason = "canceled"
	ReasonUnsupported      Reason = "unsupported"
	ReasonBundleInvalid    Reason = "bundle-invalid"
	ReasonSignature        Reason = "bad-signature"
	ReasonExpired          Reason = "expired"
	ReasonWrongEnvironment Reason = "wrong-environment"
	ReasonUnknownVersion   Reason = "unknown-version"
	ReasonTampered         Reason = "tampered"
	ReasonAlreadyInForce   Reason = "already-in-force"
	ReasonNotAuthentic     Reason = "not-authentic"
	ReasonDevelopmentOnly  Reason = "development-only"
	ReasonPermissions      Reason = "permissions"
	ReasonDeliveryTooLate  Reason = "delivery-too-late"
	ReasonNotDeclared      Reason = "not-declared"
	ReasonViolated         Reason = "violated"
	ReasonTokenInvalid     Reason = "token-invalid"
	ReasonAudience         Reason = "wrong-audience"
	ReasonIssuer           Reason = "unknown-issuer"
	ReasonNoKeys           Reason = "issuer-keys-unavailable"
	ReasonWeakAlgorithm    Reason = "weak-algorithm"
	ReasonNotYetValid      Reason = "not-yet-valid"
	ReasonEvidenceExpired  Reason = "evidence-expired"
	ReasonInstanceSeen     Reason = "instance-seen"
	ReasonKeyAttributes    Reason = "key-attributes"
	ReasonBadQuote         Reason = "bad-quote"
	ReasonEventLog         Reason = "event-log-mismatch"
	ReasonReset            Reason = "machine-reset"
	ReasonPosture          Reason = "posture"
	ReasonQuarantined      Reason = "quarantined"
	ReasonDecommissioned   Reason = "decommissioned"
	ReasonEnvironmentEnded Reason = "environment-ended"
	ReasonRootHolder       Reason = "root-holder"
	ReasonAgentOutdated    Reason = "agent-outdated"
	ReasonAgentUnsigned    Reason = "agent-unsigned"
	ReasonAgentUnknown     Reason = "agent-unknown"
	ReasonAgentClaimed     Reason = "agent-not-measured"
	ReasonFloorLowered     Reason = "floor-lowered"
	ReasonNoAudience       Reason = "audience-not-allowed"
	ReasonForeignBundle    Reason = "foreign-bundle"
	ReasonProcessGone      Reason = "process-gone"
	ReasonProcessChanged   Reason = "process-changed"
	ReasonPodUnknown       Reason = "pod-unknown"
)

type reasonRow struct {
	kind Kind
	fix  string
}

var reasons = map[Reason]reasonRow{
	ReasonInternal:         {Internal, "this is a defect: the server's log has the details under the same request ID"},
	ReasonInvalid:          {Invalid, "correct the request and send it again"},
	ReasonTooLarge:         {Invalid, "send less: the limits are in the reference"},
	ReasonNotProved:        {NotProved, "attest or log in first"},
	ReasonNoSession:        {NotProved, "attest this machine with `bailment agent`, or log in with `bailment login`"},
	ReasonSessionExpired:   {NotProved, "log in again, or let the agent renew"},
	ReasonSessionForeign:   {NotProved, "this certificate is not of this environment: check BAILMENT_ENV and the address"},
	ReasonSessionUnknown:   {NotProved, "the ledger has no entry for this certificate: attest again"},
	ReasonTokenUnknown:     {NotProved, "ask an operator for a new join token"},
	ReasonTokenExpired:     {NotProved, "ask an operator for a new join token"},
	ReasonTokenSpent:       {NotProved, "another key has used this token: if it wasn't yours, revoke that node; then ask for a new token"},
	ReasonTokenForeign:     {NotProved, "this token belongs to another environment: check the bootstrap string"},
	ReasonBadProof:         {NotProved, "the proof does not match the key or the challenge: start again with a new challenge"},
	ReasonBadChain:         {NotProved, "the certificate does not lead to an authority named in the bundle"},
	ReasonReplayed:         {NotProved, "this proof was used before: start again with a new challenge"},
	ReasonChallengeExpired: {NotProved, "start again with a new challenge"},
	ReasonChallengeForeign: {NotProved, "this challenge was not made by this environment"},
	ReasonKeySeen:          {NotProved, "make a new key: this one was used before by somebody else"},
	ReasonUnknownMethod:    {Invalid, "use one of the attestation methods that this server lists"},
	ReasonNoIdentity:       {Refused, "no identity rule of the bundle fits these claims: add one, or see `bailment explain`"},
	ReasonAmbiguous:        {Refused, "several identity rules fit: say which with --as, or narrow the rules"},
	ReasonForeignNode:      {Refused, "this node may not speak for that workload: add it to the workload's nodes in the bundle"},
	ReasonLifetimeOver:     {Refused, "the enrolment reached its hard lifetime: join again with a new token"},
	ReasonForked:           {Refused, "two holders of one enrolment were seen, so it is held: find out why, then lift the hold by an approved change"},
	ReasonNoGrant:          {Refused, "add a grant to the bundle, or see `bailment explain`"},
	ReasonDenied:           {Refused, "a deny grant forbids this: see `bailment explain`"},
	ReasonAssurance:        {Refused, "attest by a stronger method, or ask for a grant that accepts this one"},
	ReasonPurpose:          {Refused, "ask for a purpose that the grant names"},
	ReasonCondition:        {Refused, "the grant's condition is not met: see `bailment explain`"},
	ReasonGlass:            {Refused, "this is for emergencies: in one, `bailment break-glass open GRANT --incident ID --reason TEXT`; others are told at once, and another operator reviews it"},
	ReasonGlassBudget:      {Refused, "the quarter's openings are used up: have it approved by others, `bailment break-glass open GRANT … --propose`"},
	ReasonGlassReview:      {Refused, "an earlier opening is not reviewed: have another operator do so (`bailment break-glass review`), or have this one approved by others (`--propose`)"},
	ReasonCutoff:           {Refused, "what you hold was revoked: attest or log in again"},
	ReasonHeld:             {Refused, "there is a hold: an operator can propose to lift it (`bailment node release`, or `bailment revocation lift`)"},
	ReasonDuty:             {Refused, "ask an operator who has this duty"},
	ReasonSeparation:       {Refused, "somebody else has to do this"},
	ReasonQuorum:           {Refused, "collect the missing approvals"},
	ReasonWaiting:          {Refused, "wait until its delay is over; whoever may approve it can still reject it"},
	ReasonBlastLimit:       {Refused, "narrow the scope, or have it confirmed by a quorum"},
	ReasonLastQuorum:       {Refused, "nobody could lift it: bring another operator or key into force first, or only cut off, with --no-hold, after which a new login is needed"},
	ReasonNotFound:         {NotFound, "check the name with the list command"},
	ReasonNoVersion:        {NotFound, "put or generate a version first"},
	ReasonConflict:         {Conflict, "look at the present state and decide again"},
	ReasonStale:            {Conflict, "somebody else was faster three times: try again"},
	ReasonKeyReused:        {Conflict, "this idempotency key was used for another request: use a new key"},
	ReasonKeyLimit:         {Limited, "wait until older idempotency keys expire (an hour)"},
	ReasonLifecycle:        {Conflict, "bring it into a state first from which this is legal; `bailment secret history` shows the states of a secret's versions"},
	ReasonExists:           {Conflict, "it exists already: choose another name, or use it"},
	ReasonRateLimited:      {Limited, "slow down and retry after the time given"},
	ReasonOverloaded:       {Limited, "retry after the time given, with jitter"},
	ReasonLimit:            {Limited, "a limit of the environment is reached: see its documentation"},
	ReasonTooSlow:          {Limited, "send the whole request within its time: the timeouts are in the reference"},
	ReasonClock:            {Unavailable, "the server's clock jumped: check time synchronisation; it recovers when clocks agree"},
	ReasonStore:            {Unavailable, "the store failed and is being reopened: retry, and see the server's log"},
	ReasonStoreFull:        {Unavailable, "the disk is full: free some room; the server recovers by itself"},
	ReasonStarting:         {Unavailable, "the server is starting: retry"},
	ReasonStopping:         {Unavailable, "the server is stopping: retry at another"},
	ReasonUnreachable:      {Unavailable, "check the address, that the server runs, and the network between"},
	ReasonNoAgent:          {Unavailable, "start `bailment agent` on this machine, or point BAILMENT_AGENT at its socket"},
	ReasonUnknownOutcome:   {UnknownOutcome, "it may have happened: retry with the same idempotency key"},
	ReasonEntropy:          {Unavailable, "the random source failed its health test: the server makes no keys until it is restarted on a healthy machine"},
	ReasonCanceled:         {Unavailable, "the request was cancelled before anything was done"},
	ReasonUnsupported:      {Invalid, "this version can't do it: see the reference"},
	ReasonBundleInvalid:    {Invalid, "run `bailment bundle check` and mend what it finds"},
	ReasonSignature:        {NotProved, "sign with a key that is listed for you in the bundle in force"},
	ReasonExpired:          {Conflict, "it expired: start again"},
	ReasonWrongEnvironment: {Invalid, "this was made for another environment"},
	ReasonUnknownVersion:   {Invalid, "upgrade this binary: it does not know this format"},
	ReasonTampered:         {Internal, "stop, keep the directory as evidence, and compare with a checkpoint kept elsewhere"},
	ReasonAlreadyInForce:   {Conflict, "nothing to do: this bundle is in force"},
	ReasonNotAuthentic:     {NotProved, "compare with a bootstrap string or checkpoint kept elsewhere"},
	ReasonDevelopmentOnly:  {Refused, "this is allowed in the development class only"},
	ReasonPermissions:      {Invalid, "make the file readable by its owner only (chmod 0600)"},
	ReasonDeliveryTooLate:  {Unavailable, "the release was recorded but could not be delivered in time: ask again"},
	ReasonNotDeclared:      {Refused, "declare the secret in the bundle first"},
	ReasonTokenInvalid:     {NotProved, "the token is malformed, or not signed by its issuer: get a new one from the platform"},
	ReasonAudience:         {NotProved, "ask the platform for a token with the audience that this environment and method want: `bailment attest --dry-run` shows it"},
	ReasonIssuer:           {NotProved, "no authority of the bundle names this issuer: add one, with exactly the token's issuer"},
	ReasonNoKeys:           {Unavailable, "the issuer's keys can't be fetched now: retry, or pin them in the bundle (`bailment roots import`)"},
	ReasonWeakAlgorithm:    {NotProved, "this algorithm or key is not accepted: see the method's page in the reference"},
	ReasonNotYetValid:      {NotProved, "the evidence is from the future: check the clocks of the machine and the server"},
	ReasonEvidenceExpired:  {NotProved, "the evidence is too old: get a fresh one from the platform"},
	ReasonInstanceSeen:     {NotProved, "this instance attested before with another key: if it was rebuilt, have `bailment node allow-again` approved; if not, somebody else has its evidence"},
	ReasonKeyAttributes:    {NotProved, "the attestation key is not a restricted key that was made in this TPM and can't leave it: let the agent make one"},
	ReasonBadQuote:         {NotProved, "the quote is not over this challenge and these PCRs by this TPM's attestation key: start again"},
	ReasonEventLog:         {NotProved, "the event log does not replay to the quoted PCRs: send the log of this boot"},
	ReasonReset:            {NotProved, "the TPM was reset or the machine restarted while it attested: start again"},
	ReasonPosture:          {Refused, "what the machine proved is not what its identity rule requires: see the entry, or `bailment attest --dry-run` on it"},
	ReasonQuarantined:      {Refused, "the machine is quarantined: find out why (`bailment node show`), then have its release approved"},
	ReasonDecommissioned:   {Refused, "this identity was decommissioned for ever: enrol the machine under another name"},
	ReasonRootHolder:       {Refused, "name the right root key under `root_holders` in the server's configuration"},
	ReasonEnvironmentEnded: {Refused, "nothing brings it back: stop its agents and servers, and keep the data directory, whose ledger can be verified offline for ever (`bailment ledger verify`)"},
	ReasonAgentOutdated:    {Refused, "upgrade the agent: its version is below the bundle's minimum"},
	ReasonAgentUnsigned:    {Refused, "install a signed release: agents without a signed manifest run in the development class only"},
	ReasonAgentUnknown:     {Refused, "this binary is not in its release's manifest: install the released one"},
	ReasonAgentClaimed:     {Refused, "the bundle requires that agents be measured: attest with a TPM, on a kernel whose IMA measures the agent"},
	ReasonFloorLowered:     {Refused, "the minimum of agents is lowered only by a named rollback that was approved: set agents.rollback in the bundle"},
	ReasonNoAudience:       {Refused, "add the audience to spiffe.jwt.audiences in environment.yaml"},
	ReasonForeignBundle:    {Refused, "the other trust domain's bundle can't be taken as it is: look at its endpoint; if it began anew, compare its bundle out of band and have the new one approved in federation/"},
	ReasonProcessGone:      {Refused, "the process ended before it was answered: ask from one that stays until it has its answer"},
	ReasonProcessChanged:   {Refused, "the process executed another program, or was moved or replaced, after it connected: connect again from the program that needs it"},
	ReasonPodUnknown:       {NotProved, "the kubelet lists no such running container on this node: ask again when the pod runs, and compare `kubelet.node_name` with the node's name"},
	ReasonViolated:         {Internal, "look at the entries that are named: whoever could enter them had the server's keys, or the server has a defect"},
}

// Kind is the class that the table gives the reason; a reason outside the table is Internal.
func (r Reason) Kind() Kind { return reasons[r].kind }

// Fix is the way out that the table gives the reason.
func (r Reason) Fix() string { return reasons[r].fix }

// Reasons lists the table, for the generated reference and for tests. The order is not defined.
func Reasons() []Reason {
	out := make([]Reason, 0, len(reasons))
	for r := range reasons {
		out = append(out, r)
	}
	return out
}
