package agent

import "github.com/bailment/bailment/internal/problem"

// class is what a failure means for an agent: the state that it leads to without a session, and whether to try again soon.
type class struct {
	state State
	soon  bool
}

// What the network or the server mends by itself is tried soon, and all else rarely: a person must mend it, and what changes here or
// is pushed by the server wakes the agent anyway.
var (
	away        = class{Unreachable, true}
	notTheir    = class{Unreachable, false} // who answers is not the environment, or its history is not to be believed
	notProved   = class{NotProved, false}
	refused     = class{Refused, false}
	held        = class{Held, false}
	quarantined = class{Quarantined, false}
	outdated    = class{Outdated, false} // another build of this program mends it, and nothing else here
)

// passes says which failures of this machine's own half may pass by themselves: what is asked there is away for now, took too long, or began
// anew meanwhile. All else a person must mend.
func passes(r problem.Reason) bool {
	switch r {
	case problem.ReasonUnreachable, problem.ReasonCanceled, problem.ReasonReset:
		return true
	default:
		return false
	}
}

// classes has every reason: a new one is to be thought about here. Some of them no server has for an agent; they are what they would be.
var classes = map[problem.Reason]class{
	problem.ReasonInternal:        away,
	problem.ReasonRateLimited:     away,
	problem.ReasonOverloaded:      away,
	problem.ReasonTooSlow:         away,
	problem.ReasonLimit:           away,
	problem.ReasonKeyLimit:        away,
	problem.ReasonClock:           away,
	problem.ReasonStore:           away,
	problem.ReasonStoreFull:       away,
	problem.ReasonStarting:        away,
	problem.ReasonStopping:        away,
	problem.ReasonUnreachable:     away,
	problem.ReasonUnknownOutcome:  away,
	problem.ReasonEntropy:         away,
	problem.ReasonCanceled:        away,
	problem.ReasonNoKeys:          away,
	problem.ReasonStale:           away, // others were faster three times
	problem.ReasonDeliveryTooLate: away,

	problem.ReasonNoAgent:          notTheir,
	problem.ReasonNotAuthentic:     notTheir,
	problem.ReasonWrongEnvironment: notTheir,
	problem.ReasonTampered:         notTheir,
	problem.ReasonViolated:         notTheir,

	problem.ReasonNotProved:        notProved,
	problem.ReasonNoSession:        notProved,
	problem.ReasonSessionExpired:   notProved,
	problem.ReasonSessionForeign:   notProved,
	problem.ReasonSessionUnknown:   notProved,
	problem.ReasonTokenUnknown:     notProved,
	problem.ReasonTokenExpired:     notProved,
	problem.ReasonTokenSpent:       notProved,
	problem.ReasonTokenForeign:     notProved,
	problem.ReasonTokenInvalid:     notProved,
	problem.ReasonBadProof:         notProved,
	problem.ReasonBadChain:         notProved,
	problem.ReasonReplayed:         notProved,
	problem.ReasonChallengeExpired: notProved,
	problem.ReasonChallengeForeign: notProved,
	problem.ReasonKeySeen:          notProved,
	problem.ReasonSignature:        notProved,
	problem.ReasonAudience:         notProved,
	problem.ReasonIssuer:           notProved,
	problem.ReasonWeakAlgorithm:    notProved,
	problem.ReasonNotYetValid:      notProved,
	problem.ReasonEvidenceExpired:  notProved,
	problem.ReasonInstanceSeen:     notProved,
	problem.ReasonKeyAttributes:    notProved,
	problem.ReasonBadQuote:         notProved,
	problem.ReasonEventLog:         notProved,
	problem.ReasonReset:            notProved,
	problem.ReasonPodUnknown:       notProved,

	problem.ReasonHeld:        held,
	problem.ReasonForked:      held,
	problem.ReasonQuarantined: quarantined,

	problem.ReasonAgentOutdated: outdated,
	problem.ReasonAgentUnsigned: outdated,
	problem.ReasonAgentUnknown:  outdated,
	problem.ReasonAgentClaimed:  outdated,

	problem.ReasonInvalid:          refused,
	problem.ReasonTooLarge:         refused,
	problem.ReasonUnknownMethod:    refused,
	problem.ReasonUnknownVersion:   refused,
	problem.ReasonUnsupported:      refused,
	problem.ReasonBundleInvalid:    refused,
	problem.ReasonPermissions:      refused,
	problem.ReasonNoIdentity:       refused,
	problem.ReasonAmbiguous:        refused,
	problem.ReasonForeignNode:      refused,
	problem.ReasonLifetimeOver:     refused,
	problem.ReasonNoGrant:          refused,
	problem.ReasonDenied:           refused,
	problem.ReasonAssurance:        refused,
	problem.ReasonPurpose:          refused,
	problem.ReasonCondition:        refused,
	problem.ReasonGlass:            refused,
	problem.ReasonGlassBudget:      refused,
	problem.ReasonGlassReview:      refused,
	problem.ReasonCutoff:           refused,
	problem.ReasonDuty:             refused,
	problem.ReasonSeparation:       refused,
	problem.ReasonQuorum:           refused,
	problem.ReasonWaiting:          refused,
	problem.ReasonBlastLimit:       refused,
	problem.ReasonLastQuorum:       refused,
	problem.ReasonNotFound:         refused,
	problem.ReasonNoVersion:        refused,
	problem.ReasonConflict:         refused,
	problem.ReasonKeyReused:        refused,
	problem.ReasonLifecycle:        refused,
	problem.ReasonExists:           refused,
	problem.ReasonExpired:          refused,
	problem.ReasonAlreadyInForce:   refused,
	problem.ReasonDevelopmentOnly:  refused,
	problem.ReasonNotDeclared:      refused,
	problem.ReasonPosture:          refused,
	problem.ReasonEnvironmentEnded: refused,
	problem.ReasonRootHolder:       refused,
	problem.ReasonDecommissioned:   refused,
	problem.ReasonFloorLowered:     refused,
	problem.ReasonNoAudience:       refused,
	problem.ReasonForeignBundle:    refused,
	problem.ReasonProcessGone:      refused,
	problem.ReasonProcessChanged:   refused,
}

// classOf is the class of a problem. A later server may have reasons that are not in the table: then its kind says it.
func classOf(p *problem.Problem) class {
	if c, ok := classes[p.Reason]; ok {
		return c
	}
	switch p.Kind {
	case problem.NotProved:
		return notProved
	case problem.Unavailable, problem.Limited, problem.UnknownOutcome, problem.Internal:
		return away
	default:
		return refused
	}
}
