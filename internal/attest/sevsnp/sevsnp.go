// Package sevsnp is the attestation method "sev-snp": a confidential VM proves by a report that the secure processor of its AMD CPU
// signed, what it was launched from and that this challenge came from inside of it.
//
// Guaranteed: the report is signed by a key (VCEK or VLEK) whose certificate leads to AMD roots that the bundle names, and no others; it
// was made for this challenge, environment and session key; the certificate is for the chip and the firmware levels that the report
// names; and the VM's policy forbids its host to debug it. Not guaranteed: that AMD has not revoked a key (no revocation list is asked, a
// verifier does no I/O), that firmware is new enough (claims say which it is), and that what was launched is good: the measurement is
// a claim, and an identity rule must compare it. README.md says more.
//
// The formats and the signatures are checked by github.com/google/go-sev-guest. It has AMD's roots compiled in, which are never used here.
// It is one method of package attest.
package sevsnp

import (
	"bytes"
	"context"
	cx509 "crypto/x509"
	"encoding/pem"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	pb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tsm"
	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/problem"
)

// Name is the method's name, and the first half of its anchors ("sev-snp:AUTHORITY").
const Name = "sev-snp"

const maxCertificate = 8 << 10 // bytes of DER; AMD's have 1.4 KiB

// What an agent may be given for this method.
const (
	NeedTSM         = "tsm"
	NeedCertificate = "certificate"
)

// Method is the method's row of the table.
func Method() attest.Method {
	return attest.Method{
		Name:   Name,
		Proves: "that the session key was made known inside a confidential VM on an AMD CPU, which was launched with the measurement in the claims and can't be debugged by its host",
		DoesNotProve: "that the measurement is a good one (a rule must compare it), that the firmware is new enough, that AMD has not revoked the chip's key, " +
			"or what was loaded after the launch",
		Assurance: identity.Platform,
		Shared:    true, // by all VMs of the chip, or of the provider
		Machine:   []string{"report"},
		Renewal:   attest.Renewal{Kind: attest.RenewByEvidence},
		Verify:    Verify,
		Params:    paramsOf,
		Needs: []attest.Need{
			{Name: NeedTSM, Doc: "the directory in which Linux makes reports of confidential VMs (default " + tsm.Default + ")", Optional: true, Literal: true},
			{Name: NeedCertificate, Doc: "the certificate of the CPU's key (VCEK or VLEK, PEM or DER), where the host doesn't give it with the report", Optional: true},
		},
		NewAttester: func(m attest.Material) (attest.Attester, error) {
			folder, err := tsm.Open(string(m[NeedTSM]))
			if err != nil {
				return nil, err
			}
			return NewAttester(folder, m[NeedCertificate])
		},
	}
}

// evidence is the document that crosses the wire. Its field order is its encoding.
type evidence struct {
	Report      []byte `json:"report"`      // SEV-SNP ABI (AMD 56860), table "ATTESTATION_REPORT structure"
	Certificate []byte `json:"certificate"` // DER of the key that signed it
}

// reportData is what REPORT_DATA must be: the binding's digest, and zeros.
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
	report, err := parseReport(ev.Report)
	if err != nil {
		return attest.Result{}, err
	}
	certificate, err := parseCertificate(ev.Certificate)
	if err != nil {
		return attest.Result{}, err
	}
	return judge(report, certificate, reportData(in.Binding), params, in.Now)
}

// judge is Verify after parsing.
func judge(report *pb.Report, certificate *cx509.Certificate, data [tsm.DataSize]byte, params Params, now time.Time) (attest.Result, error) {
	if !bytes.Equal(report.GetReportData(), data[:]) {
		return attest.Result{}, problem.New(problem.ReasonBadProof, "the report was not made for this challenge, environment and session key")
	}
	verified, err := params.verify(report, certificate, now)
	if err != nil {
		return attest.Result{}, err
	}
	if err := checkGuest(report); err != nil {
		return attest.Result{}, err
	}
	key, err := attest.Thumbprint(certificate.PublicKey)
	if err != nil {
		return attest.Result{}, err
	}
	claims := claimsOf(report, verified)
	if err := attest.CheckClaims(claims); err != nil {
		return attest.Result{}, err
	}
	return attest.Result{Claims: claims, Assurance: identity.Platform, Anchor: Name + ":" + verified.authority, Key: key, NotAfter: verified.notAfter}, nil
}

func parseReport(raw []byte) (*pb.Report, error) {
	refuse := func(cause error) (*pb.Report, error) {
		p := problem.New(problem.ReasonInvalid, "the evidence holds no SEV-SNP report of a version that is known")
		p.Err = cause
		return nil, p
	}
	if len(raw) != abi.ReportSize {
		return refuse(nil)
	}
	if err := abi.ValidateReportFormat(raw); err != nil {
		return refuse(err)
	}
	report, err := abi.ReportToProto(raw)
	if err != nil {
		return refuse(err)
	}
	// What the parser passed over would be signed, but not seen.
	if again, err := abi.ReportToAbiBytes(report); err != nil || !bytes.Equal(again, raw) {
		return refuse(err)
	}
	return report, nil
}

func parseCertificate(der []byte) (*cx509.Certificate, error) {
	if len(der) > maxCertificate {
		return nil, problem.New(problem.ReasonTooLarge, "the certificate has more than %d bytes", maxCertificate)
	}
	c, err := cx509.ParseCertificate(der)
	if err != nil {
		p := problem.New(problem.ReasonInvalid, "the certificate can't be parsed")
		p.Err = err
		return nil, p
	}
	return c, nil
}

// checkGuest refuses reports that are genuine and prove nothing.
func checkGuest(report *pb.Report) error {
	policy, err := abi.ParseSnpPolicy(report.GetPolicy())
	if err != nil {
		return problem.New(problem.ReasonInvalid, "the guest's policy can't be read")
	}
	switch {
	case policy.Debug:
		return problem.New(problem.ReasonBadProof, "the VM's host may debug it, so that its report proves nothing").
			WithFix("launch the VM with a policy that forbids debugging")
	case report.GetVmpl() > 3:
		// The host asks for reports too, and then there is no privilege level of the guest (0xffffffff).
		return problem.New(problem.ReasonBadProof, "the report was not asked for by the VM")
	}
	return nil
}

// Reporter asks the platform for a report: *tsm.Folder, or a fake of it.
type Reporter interface {
	Report(ctx context.Context, data [tsm.DataSize]byte) (tsm.Report, error)
}

// attester asks the kernel anew for each binding.
type attester struct {
	reporter    Reporter
	certificate []byte // DER; nil: it comes with the report
}

// NewAttester makes the attester. The certificate is PEM, DER or empty.
func NewAttester(reporter Reporter, certificate []byte) (attest.Attester, error) {
	if len(certificate) == 0 {
		return attester{reporter, nil}, nil
	}
	if block, rest := pem.Decode(certificate); block != nil && block.Type == "CERTIFICATE" && len(bytes.TrimSpace(rest)) == 0 {
		certificate = block.Bytes
	}
	if _, err := cx509.ParseCertificate(certificate); err != nil || len(certificate) > maxCertificate {
		return nil, problem.New(problem.ReasonInvalid, "the certificate's file is not one certificate in PEM or DER")
	}
	return attester{reporter, bytes.Clone(certificate)}, nil
}

// Attest has the secure processor sign the binding.
func (a attester) Attest(ctx context.Context, b attest.Binding) ([]byte, error) {
	if err := attest.BeginAttest(ctx, b, Name); err != nil {
		return nil, err
	}
	r, err := a.reporter.Report(ctx, reportData(b))
	if err != nil {
		return nil, err
	}
	if r.Provider != "sev_guest" || len(r.Out) != abi.ReportSize {
		return nil, problem.New(problem.ReasonUnsupported, "this machine makes no SEV-SNP reports").WithFix("choose the attestation method of this machine")
	}
	certificate := a.certificate
	if certificate == nil {
		if certificate, err = certificateOf(r.Aux, r.Out); err != nil {
			return nil, err
		}
	}
	return attest.EncodeEvidence(evidence{r.Out, certificate})
}

// certificateOf finds the signing key's certificate in the table that the host gave with the report. The host is not trusted, also not to
// give a table whose places are inside of it.
func certificateOf(table, report []byte) ([]byte, error) {
	none := problem.New(problem.ReasonNotFound, "the host gave no certificate of the CPU's key with the report").
		WithFix("get it from AMD's key distribution service, and name its file as %q in the agent's configuration", NeedCertificate)
	entries, err := abi.ParseSnpCertTableHeader(table)
	if err != nil {
		return nil, none
	}
	for _, e := range entries {
		if uint64(e.Offset)+uint64(e.Length) > uint64(len(table)) {
			return nil, none
		}
	}
	var certs abi.CertTable
	if err := certs.Unmarshal(table); err != nil {
		return nil, none
	}
	signer, err := abi.ReportSignerInfo(report)
	if err != nil {
		return nil, none
	}
	info, err := abi.ParseSignerInfo(signer)
	if err != nil {
		return nil, none
	}
	guid := abi.VcekGUID
	if info.SigningKey == abi.VlekReportSigner {
		guid = abi.VlekGUID
	}
	der, err := certs.GetByGUIDString(guid)
	if err != nil || len(der) == 0 {
		return nil, none
	}
	return der, nil
}

// levels are the security patch levels of the parts of the firmware.
func levels(tcb uint64) map[string]any {
	p := kds.DecomposeTCBVersion(kds.TCBVersion(tcb))
	return map[string]any{"bootloader": number(p.BlSpl), "tee": number(p.TeeSpl), "snp": number(p.SnpSpl), "microcode": number(p.UcodeSpl)}
}

// check is the library's own judgement, by our roots and our clock, without any network.
func check(report *pb.Report, certificate *cx509.Certificate, signer abi.ReportSigner, o *verify.Options) error {
	chain := &pb.CertificateChain{VcekCert: certificate.Raw}
	if signer == abi.VlekReportSigner {
		chain = &pb.CertificateChain{VlekCert: certificate.Raw}
	}
	return verify.SnpAttestation(&pb.Attestation{Report: report, CertificateChain: chain}, o)
}
