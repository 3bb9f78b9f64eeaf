package aws

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/bailment/bailment/internal/problem"
)

// document is what we read of an instance identity document. It has more, and may get more: AWS signed all of it.
type document struct {
	AccountID        string `json:"accountId"`
	Region           string `json:"region"`
	AvailabilityZone string `json:"availabilityZone"`
	InstanceID       string `json:"instanceId"`
	InstanceType     string `json:"instanceType"`
	ImageID          string `json:"imageId"`
	PrivateIP        string `json:"privateIp"`
	Architecture     string `json:"architecture"`
	PendingTime      string `json:"pendingTime"`

	started time.Time
}

var (
	account  = regexp.MustCompile(`^[0-9]{12}$`)
	instance = regexp.MustCompile(`^i-[0-9a-f]{8,32}$`)
	image    = regexp.MustCompile(`^ami-[0-9a-f]{8,32}$`)
	word     = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
)

// parseDocument reads a document that was signed. It is strict all the same: one that is read in two ways, or that lacks what makes the
// instance one of its kind, must not become claims. The library refuses duplicate members, other letter case is another member, and what
// follows the document is an error.
func parseDocument(content []byte) (document, error) {
	var d document
	if err := json.Unmarshal(content, &d); err != nil {
		p := problem.New(problem.ReasonInvalid, "what was signed is not an instance identity document")
		p.Err = err
		return document{}, p
	}
	started, err := time.Parse(time.RFC3339, d.PendingTime)
	ip, ipErr := netip.ParseAddr(d.PrivateIP)
	switch {
	case !account.MatchString(d.AccountID):
		return document{}, wrongField("accountId")
	case !region.MatchString(d.Region):
		return document{}, wrongField("region")
	case !instance.MatchString(d.InstanceID):
		return document{}, wrongField("instanceId")
	case !strings.HasPrefix(d.AvailabilityZone, d.Region) || !word.MatchString(d.AvailabilityZone):
		return document{}, wrongField("availabilityZone")
	case !word.MatchString(d.InstanceType):
		return document{}, wrongField("instanceType")
	case !image.MatchString(d.ImageID):
		return document{}, wrongField("imageId")
	case !word.MatchString(d.Architecture):
		return document{}, wrongField("architecture")
	case d.PrivateIP != "" && (ipErr != nil || ip.Zone() != ""): // without it: a subnet that has IPv6 only
		return document{}, wrongField("privateIp")
	case err != nil:
		return document{}, wrongField("pendingTime")
	}
	d.started = started.UTC()
	return d, nil
}

func wrongField(name string) error {
	return problem.New(problem.ReasonInvalid, "the instance identity document has no %s of the form that AWS documents", name)
}
