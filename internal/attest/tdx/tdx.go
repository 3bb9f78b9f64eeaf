// Package tdx is the attestation method "tdx": a confidential VM (trust domain) proves by a quote of Intel's quoting enclave what it was
// launched from, and that this challenge came from inside of it.
//
// Guaranteed: the quote (version 4) was made for this challenge, environment and session key; the quoting enclave that signed it is Intel's
// by signer and product; that enclave's report is signed by the platform's key (PCK), whose certificate leads to an Intel root that the bundle
// names, and no other; the TDX module is Intel's; and the trust domain's attributes forbid its host to debug it. Not guaranteed: that
// firmware, module and enclave are new enough, or that a key was not revoked: Intel says that in collateral, which is fetched over the
// network and expires in a month. A verifier does no I/O, so the claims give the levels and say "not checked". README.md says more.
//
// The formats and the signatures are checked by github.com/google/go-tdx-guest, which trusts lengths in a quote; frame.go checks them first.
// It is one method of package attest.
package tdx

import (
	"bytes"
	"context"
	cx509 "crypto/x509"
	"time"

	"github.com/google/go-tdx-guest/abi"
	pb "github.com/google/go-tdx-guest/proto/tdx"
	"github.com/google/go-tdx-guest/verify"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tsm"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first half of its anchors ("tdx:AUTHORITY").
const Name = "tdx"

const maxQuote = 24 << 10 // bytes; Intel's have 5 KiB

// NeedTSM is what an agent may be given for this method.
const NeedTSM = "tsm"

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "that the session key was made known inside a confidential VM on an Intel CPU, which was launched with the measurement in the claims and can't be debugged by its host",
		DoesNotProve: "that the measurements are good ones (a rule must compare them), that firmware, TDX module and quoting enclave are new enough, " +
			"or that Intel has not revoked the platform's key",
		Assurance: identity.Platform,
		Shared:    true, // by all VMs of the platform, and nothing in a quote names one
		Renewal:   attest.Renewal{Kind: attest.RenewByEvidence},
		Verify:    Verify,
		Params:    paramsOf,
		Needs: []attest.Need{
			{Name: NeedTSM, Doc: "the directory in which Linux makes reports of confidential VMs (default " + tsm.Default + ")", Optional: true, Literal: true},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			folder, err := tsm.Open(string(m[NeedTSM]))
			if err != nil {
				return nil, err
			}
			return NewAttester(folder), nil
		},
	}
}

// evidence is the document that crosses the wire.
type evidence struct {
	Quote []byte `json:"quote"` // Intel TDX DCAP Quoting Library API, appendix A.3: version 4, with the PCK's certificates
}

// reportData is what REPORTDATA must be: the binding's digest, and zeros.
func reportData(b attest.Binding) [tsm.DataSize]byte { return tsm.Data(b.Digest()) }

// Verify is the verifier; its Params are of type Params.
func Verify(in attest.Input) (attest.Result, error) {
	params, err := attest.Begin[Params](in, Name)
	if err != nil {
		return attest.Result{}, err
	}
	var ev evidence
	if err := attest.DecodeEvidence(in.Evidence, &ev); err != nil {
		return attest.Result{}, err
	}
	quote, err := parseQuote(ev.Quote)
	if err != nil {
		return attest.Result{}, err
	}
	return judge(quote, reportData(in.Binding), params, in.Now)
}

// judge is Verify after parsing.
func judge(quote *pb.QuoteV4, data [tsm.DataSize]byte, params Params, now time.Time) (attest.Result, error) {
	if !bytes.Equal(quote.GetTdQuoteBody().GetReportData(), data[:]) {
		return attest.Result{}, problem.New(problem.ReasonBadProof, "the quote was not made for this challenge, environment and session key")
	}
	v, err := params.verify(quote, now)
	if err != nil {
		return attest.Result{}, err
	}
	if err := checkEnclave(quote); err != nil {
		return attest.Result{}, err
	}
	if err := checkDomain(quote.GetTdQuoteBody()); err != nil {
		return attest.Result{}, err
	}
	key, err := attest.Thumbprint(v.pck.PublicKey)
	if err != nil {
		return attest.Result{}, err
	}
	claims := claimsOf(quote, v)
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	return attest.Result{Claims: claims, Assurance: identity.Platform, Anchor: Name + ":" + v.authority, Key: key, NotAfter: v.notAfter}, nil
}

func parseQuote(raw []byte) (*pb.QuoteV4, error) {
	if len(raw) > maxQuote {
		return nil, problem.New(problem.ReasonTooLarge, "the quote has more than %d bytes", maxQuote)
	}
	refuse := func(cause error) (*pb.QuoteV4, error) {
		p := problem.New(problem.ReasonInvalid, "the evidence holds no TDX quote of version 4 with its platform's certificates")
		p.Err = cause
		return nil, p
	}
	if err := checkFrame(raw); err != nil {
		return refuse(err)
	}
	parsed, err := abi.QuoteToProto(raw)
	if err != nil {
		return refuse(err)
	}
	quote, ok := parsed.(*pb.QuoteV4)
	if !ok {
		return refuse(nil)
	}
	// What the parser passed over could be another quote for another reader.
	if again, err := abi.QuoteToAbiBytes(quote); err != nil || !bytes.Equal(again, raw) {
		return refuse(err)
	}
	return quote, nil
}

// Reporter asks the platform for a quote: *tsm.Folder, or a fake of it.
type Reporter interface {
	Report(ctx context.Context, data [tsm.DataSize]byte) (tsm.Report, error)
}

// attester asks the kernel anew for each binding.
type attester struct{ reporter Reporter }

// NewAttester makes the attester.
func NewAttester(reporter Reporter) attest.Attester { return attester{reporter} }

// Attest has the platform quote the binding.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	r, err := a.reporter.Report(ctx, reportData(b))
	if err != nil {
		return nil, err
	}
	quote := r.Out
	// Some hosts give a buffer that is longer than the quote in it.
	if n, ok := quoteSize(quote); ok && n <= len(quote) && len(bytes.Trim(quote[n:], "\x00")) == 0 {
		quote = quote[:n]
	}
	if r.Provider != "tdx_guest" || checkFrame(quote) != nil {
		return nil, problem.New(problem.ReasonUnsupported, "this machine makes no TDX quotes of version 4 with its platform's certificates").
			WithFix("choose the attestation method of this machine; if it is this one, configure its host's quote generation service to add the certificates")
	}
	return attest.EncodeEvidence(evidence{quote})
}

// check is the library's own judgement, by our root and our clock, without any network.
func check(quote *pb.QuoteV4, root *cx509.Certificate, now time.Time) error {
	pool := cx509.NewCertPool()
	pool.AddCert(root)
	return verify.TdxQuote(quote, &verify.Options{TrustedRoots: pool, Now: now})
}
