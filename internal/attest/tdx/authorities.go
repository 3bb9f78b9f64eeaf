package tdx

import (
	"bytes"
	"crypto/sha256"
	cx509 "crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strconv"
	"time"

	"github.com/google/go-tdx-guest/pcs"
	pb "github.com/google/go-tdx-guest/proto/tdx"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// Params is what Verify needs of the environment: Intel's roots, as the bundle names them. It is immutable.
type Params struct {
	roots map[[sha256.Size]byte]root // by SHA-256 of the DER
}

type root struct {
	authority   string
	certificate *cx509.Certificate
}

func paramsOf(all []authority.Authority) (any, error) { return NewParams(all) }

// NewParams makes the params from a bundle's authorities, each with one or several self-signed roots.
func NewParams(all []authority.Authority) (Params, error) {
	p := Params{roots: map[[sha256.Size]byte]root{}}
	for _, a := range all {
		if err := authority.ValidName(a.Name); err != nil {
			return Params{}, problem.New(problem.ReasonInvalid, "%v", err)
		}
		for _, c := range a.Certificates {
			if c.CheckSignatureFrom(c) != nil {
				return Params{}, problem.New(problem.ReasonInvalid, "tdx authority %.80q: the certificate of %.80q is not self-signed: it needs Intel's root", a.Name, c.Subject.CommonName)
			}
			sum := sha256.Sum256(c.Raw)
			if _, twice := p.roots[sum]; twice {
				return Params{}, problem.New(problem.ReasonInvalid, "tdx authority %.80q: the certificate of %.80q stands in the bundle twice", a.Name, c.Subject.CommonName)
			}
			p.roots[sum] = root{a.Name, c}
		}
	}
	return p, nil
}

// verified is what is known of a quote that was found genuine.
type verified struct {
	authority string
	pck       *cx509.Certificate
	platform  *pcs.PckExtensions
	notAfter  time.Time
}

// verify checks signatures and chain.
func (p Params) verify(quote *pb.QuoteV4, now time.Time) (verified, error) {
	// Causes may quote the evidence, so they stay inside.
	refuse := func(cause error, r problem.Reason, says string) (verified, error) {
		q := problem.New(r, "%s", says)
		q.Err = cause
		return verified{}, q
	}
	chain, err := chainOf(quote)
	if err != nil {
		return refuse(err, problem.ReasonInvalid, "the quote's certificates can't be read")
	}
	r, ok := p.roots[sha256.Sum256(chain[2].Raw)]
	if !ok {
		return refuse(nil, problem.ReasonBadChain, "the platform's certificate does not lead to a root that the bundle names")
	}
	v := verified{authority: r.authority, pck: chain[0], notAfter: chain[0].NotAfter}
	for _, c := range chain {
		// The library looks at the ends of some certificates only.
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return refuse(nil, problem.ReasonBadChain, "a certificate of the platform's chain is not valid now")
		}
		if c.NotAfter.Before(v.notAfter) {
			v.notAfter = c.NotAfter
		}
	}
	if err := chainFits(chain); err != nil {
		return refuse(err, problem.ReasonBadChain, "the platform's certificates don't lead to their root")
	}
	if v.platform, err = pcs.PckCertificateExtensions(v.pck); err != nil {
		return refuse(err, problem.ReasonBadChain, "the platform's certificate lacks what Intel writes into it")
	}
	// What is left are the signatures in the quote. The library looks at the chain again by its own reading.
	if err := check(quote, r.certificate, now); err != nil {
		return refuse(err, problem.ReasonBadProof, "the quote is not signed by the quoting enclave, or that is not certified by the platform's key")
	}
	return v, nil
}

// chainFits checks the signatures of a chain, the leaf first. The library checks them too, but doesn't tell what failed.
func chainFits(chain []*cx509.Certificate) error {
	for i, c := range chain {
		parent := chain[min(i+1, len(chain)-1)]
		if !bytes.Equal(c.RawIssuer, parent.RawSubject) {
			return errors.New("a name does not fit")
		}
		if err := c.CheckSignatureFrom(parent); err != nil {
			return err
		}
	}
	return nil
}

// chainOf reads the PCK's certificate, its issuer's and the root's. Some platforms end the text with a zero byte.
func chainOf(quote *pb.QuoteV4) ([]*cx509.Certificate, error) {
	text := quote.GetSignedData().GetCertificationData().GetQeReportCertificationData().GetPckCertificateChainData().GetPckCertChain()
	text = bytes.TrimSuffix(text, []byte{0})
	var chain []*cx509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) > 0 || len(chain) == 3 {
			return nil, errors.New("not three certificates in PEM")
		}
		c, err := cx509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		chain, text = append(chain, c), rest
	}
	if len(chain) != 3 {
		return nil, errors.New("not three certificates in PEM")
	}
	return chain, nil
}

// Intel's quoting enclave for TDX, as its identity says (https://api.trustedservices.intel.com/tdx/certification/v4/qe/identity): who signed
// it, its product number, and the attributes under its mask. Without this check an enclave of somebody else on a genuine platform could sign
// quotes.
const (
	enclaveSigner  = "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
	enclaveProduct = 2
)

var (
	enclaveAttributes     = [16]byte{0x11}
	enclaveAttributesMask = [16]byte{0xFB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF}
)

// intelVendor is the QE vendor ID of Intel's quoting enclaves.
const intelVendor = "939a7233f79c4ca9940a0db3957f0607"

func checkEnclave(quote *pb.QuoteV4) error {
	report := quote.GetSignedData().GetCertificationData().GetQeReportCertificationData().GetQeReport()
	ok := hex.EncodeToString(quote.GetHeader().GetQeVendorId()) == intelVendor &&
		hex.EncodeToString(report.GetMrSigner()) == enclaveSigner && report.GetIsvProdId() == enclaveProduct && report.GetMiscSelect() == 0
	for i, b := range report.GetAttributes() {
		ok = ok && b&enclaveAttributesMask[i] == enclaveAttributes[i]
	}
	if !ok {
		return problem.New(problem.ReasonBadProof, "the enclave that made the quote is not Intel's quoting enclave for TDX")
	}
	return nil
}

// checkDomain refuses quotes that are genuine and prove nothing (Intel TDX Module ABI, TD_ATTRIBUTES and SEAM).
func checkDomain(body *pb.TDQuoteBody) error {
	switch {
	case body.GetTdAttributes()[0] != 0: // the group TUD: DEBUG, and bits that are reserved for what also makes it untrusted
		return problem.New(problem.ReasonBadProof, "the VM's host may debug it, so that its quote proves nothing").
			WithFix("launch the VM without debugging")
	case !allZero(body.GetMrSignerSeam()) || !allZero(body.GetSeamAttributes()):
		return problem.New(problem.ReasonBadProof, "the TDX module is not Intel's, or is one for debugging")
	}
	return nil
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// claimsOf says what the quote says. Every field is always there; all are texts, numbers in decimal and bytes in hexadecimal:
//
//	authority    the named authority of the bundle
//	mr_td        SHA-384 of what was launched
//	rtmr         four registers that firmware and system extend
//	mr_config, mr_owner, mr_owner_config   what the host passed at the launch
//	mr_seam      SHA-384 of the TDX module
//	attributes, xfam   the domain's, as in the quote
//	tcb          levels: {module (16 bytes of the TDX module), cpu (16 of the certificate's), pce, enclave}
//	platform     {id, fmspc, pce}: the platform by its certificate
//	tcb_status, revocation   "not checked"
func claimsOf(q *pb.QuoteV4, v verified) map[string]any {
	body := q.GetTdQuoteBody()
	enclave := q.GetSignedData().GetCertificationData().GetQeReportCertificationData().GetQeReport()
	rtmr := make([]any, len(body.GetRtmrs()))
	for i, r := range body.GetRtmrs() {
		rtmr[i] = hex.EncodeToString(r)
	}
	return map[string]any{
		"authority": v.authority, "mr_td": hex.EncodeToString(body.GetMrTd()), "rtmr": rtmr,
		"mr_config": hex.EncodeToString(body.GetMrConfigId()), "mr_owner": hex.EncodeToString(body.GetMrOwner()), "mr_owner_config": hex.EncodeToString(body.GetMrOwnerConfig()),
		"mr_seam": hex.EncodeToString(body.GetMrSeam()), "attributes": hex.EncodeToString(body.GetTdAttributes()), "xfam": hex.EncodeToString(body.GetXfam()),
		"tcb": map[string]any{
			"module": hex.EncodeToString(body.GetTeeTcbSvn()), "cpu": hex.EncodeToString(v.platform.TCB.CPUSvnComponents),
			"pce": strconv.Itoa(int(v.platform.TCB.PCESvn)), "enclave": strconv.Itoa(int(enclave.GetIsvSvn())),
		},
		"platform":   map[string]any{"id": v.platform.PPID, "fmspc": v.platform.FMSPC, "pce": v.platform.PCEID},
		"tcb_status": "not checked", "revocation": "not checked",
	}
}
