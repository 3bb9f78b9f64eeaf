package azure

import (
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"

	"github.com/bailment/bailment/internal/attest/jwt"
	"github.com/bailment/bailment/internal/problem"
)

// document is what we read of an attested document. It has more, and may get more: Azure signed all of it.
type document struct {
	Nonce          string `json:"nonce"`
	VMID           string `json:"vmId"`
	SubscriptionID string `json:"subscriptionId"`
	SKU            string `json:"sku"`
	LicenseType    string `json:"licenseType"`
	Plan           struct {
		Name      string `json:"name"`
		Product   string `json:"product"`
		Publisher string `json:"publisher"`
	} `json:"plan"`
	TimeStamp struct {
		CreatedOn string `json:"createdOn"`
		ExpiresOn string `json:"expiresOn"`
	} `json:"timeStamp"`

	created, expires time.Time
}

// layout is of the document's times, which are in UTC: "11/28/18 00:16:17 -0000".
const layout = "01/02/06 15:04:05 -0000"

var guid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// parseDocument reads a document that was signed, strictly all the same. The library refuses duplicate members and what follows; other
// letter case is another member. IDs are compared without case in Azure, so here they are in lower case.
func parseDocument(content []byte) (document, error) {
	var d document
	if err := json.Unmarshal(content, &d); err != nil {
		p := problem.New(problem.ReasonInvalid, "what was signed is not an attested document")
		p.Err = err
		return document{}, p
	}
	d.VMID, d.SubscriptionID = lower(d.VMID), lower(d.SubscriptionID)
	var err1, err2 error
	d.created, err1 = time.Parse(layout, d.TimeStamp.CreatedOn)
	d.expires, err2 = time.Parse(layout, d.TimeStamp.ExpiresOn)
	switch {
	case !guid.MatchString(d.VMID):
		return document{}, wrongField("vmId")
	case !guid.MatchString(d.SubscriptionID):
		// A machine of the classic deployment model has none, and is not taken.
		return document{}, wrongField("subscriptionId")
	case err1 != nil || err2 != nil || !d.created.Before(d.expires):
		return document{}, wrongField("timeStamp")
	}
	return d, nil
}

func wrongField(name string) error {
	return problem.New(problem.ReasonInvalid, "the attested document has no %s of the form that Azure documents", name)
}

// resource is an Azure resource's ID, in lower case.
type resource struct{ subscription, group, kind, name string }

// The kinds of resources that are machines. A token of a uniform scale set's own identity names the set, not the machine.
const (
	kindMachine  = "microsoft.compute/virtualmachines"
	kindScaleSet = "microsoft.compute/virtualmachinescalesets"
)

// parseResource reads /subscriptions/ID/resourcegroups/GROUP/providers/NAMESPACE/TYPE/NAME, and the machine's number within a scale set,
// which is passed over: as a name it is used again. Names are of what Azure allows for any of these: letters and numbers of any script.
// As a regular expression, classes of Unicode repeated so often are 8 MiB of program, made by every process that starts.
func parseResource(id string) (resource, bool) {
	parts := strings.Split(lower(id), "/")
	switch len(parts) {
	case 9:
	case 11:
		if parts[9] != "virtualmachines" || !spelled(parts[10], 10, digit) {
			return resource{}, false
		}
	default:
		return resource{}, false
	}
	if parts[0] != "" || parts[1] != "subscriptions" || parts[3] != "resourcegroups" || parts[5] != "providers" {
		return resource{}, false
	}
	r := resource{parts[2], parts[4], parts[6] + "/" + parts[7], parts[8]}
	ok := guid.MatchString(r.subscription) &&
		spelled(r.group, 90, func(c rune) bool { return letter(c) || strings.ContainsRune("_().-", c) }) &&
		spelled(parts[6], 64, func(c rune) bool { return 'a' <= c && c <= 'z' || c == '.' }) &&
		spelled(parts[7], 64, func(c rune) bool { return 'a' <= c && c <= 'z' }) &&
		spelled(r.name, 128, func(c rune) bool { return letter(c) || strings.ContainsRune("_.-", c) })
	if !ok {
		return resource{}, false
	}
	return r, true
}

// lower writes names in the one way in which they are compared here. Azure compares character by character, by the capital of each: so a
// character is put into lower case only where that has it as its capital. The Kelvin sign and the capital i with a dot, whose small letters
// are k and i, stay what they are: with them somebody could name a resource group that is not another's, and would be taken for it.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if small := unicode.ToLower(r); unicode.ToUpper(small) == r {
			return small
		}
		return r
	}, s)
}

// spelled says whether s has one to most characters, and none but these.
func spelled(s string, most int, of func(rune) bool) bool {
	n := 0
	for _, c := range s {
		if n++; n > most || !of(c) {
			return false
		}
	}
	return n > 0
}

func letter(c rune) bool { return unicode.IsLetter(c) || unicode.IsNumber(c) }

func digit(c rune) bool { return '0' <= c && c <= '9' }

// readToken reads a token that was checked. What makes it one of a managed identity is xms_mirid, which Entra puts into those only: so a
// person's token, or another application's, for the same audience is refused. The machine is xms_az_rid, where the identity was assigned
// to it by a user, or xms_mirid itself, where it is the machine's own.
func readToken(t jwt.Token, by *issuer) (machine, error) {
	claims, err := jwt.Pick(t.Claims, "tid", "oid", "appid", "xms_mirid", "xms_az_rid")
	if err != nil {
		return machine{}, err
	}
	text := func(name string) string {
		s, _ := claims[name].(string)
		return lower(s)
	}
	invalid := func(format string, args ...any) (machine, error) {
		return machine{}, problem.New(problem.ReasonTokenInvalid, format, args...)
	}
	if text("tid") != by.tenant {
		return invalid("the token is of another tenant than its issuer")
	}
	if !guid.MatchString(text("oid")) || !guid.MatchString(text("appid")) {
		return invalid("the token names no object and application, as those of managed identities do")
	}
	if _, ok := parseResource(text("xms_mirid")); !ok {
		return invalid("the token is not one of a managed identity")
	}
	id := text("xms_az_rid")
	if id == "" {
		id = text("xms_mirid")
	}
	r, ok := parseResource(id)
	if !ok || r.kind != kindMachine && r.kind != kindScaleSet {
		return invalid("the token does not name the virtual machine or scale set that it was given to")
	}
	return machine{
		authority: by.authority, tenant: by.tenant, object: text("oid"), client: text("appid"), identity: text("xms_mirid"),
		resource: r, expires: t.Expires,
	}, nil
}
