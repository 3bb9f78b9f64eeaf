package sevsnp

import (
	"bytes"
	cx509 "crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	pb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// productLines are the CPUs whose firmware levels are where kds.DecomposeTCBVersion reads them. Turin has others.
var productLines = []string{"Milan", "Genoa"}

// Params is what Verify needs of the environment: AMD's roots, as the bundle names them. It is immutable.
type Params struct {
	roots map[string][]root // by product line
}

type root struct {
	authority string
	certs     *trust.AMDRootCerts
}

func paramsOf(all []authority.Authority) (any, error) { return NewParams(all) }

// NewParams makes the params from a bundle's authorities. Each gives, for one or several product lines, AMD's root (ARK-LINE) and what it
// signed: the certificate of the chips' signing key (SEV-LINE), of the cloud providers' (SEV-VLEK-LINE), or both.
func NewParams(all []authority.Authority) (Params, error) {
	p := Params{roots: map[string][]root{}}
	for _, a := range all {
		if err := authority.ValidName(a.Name); err != nil {
			return Params{}, problem.New(problem.ReasonInvalid, "%v", err)
		}
		lines, err := linesOf(a.Certificates)
		if err != nil {
			return Params{}, problem.New(problem.ReasonInvalid, "sev-snp authority %.80q: %v", a.Name, err)
		}
		for line, certs := range lines {
			p.roots[line] = append(p.roots[line], root{a.Name, &trust.AMDRootCerts{ProductLine: line, ProductCerts: certs}})
		}
	}
	return p, nil
}

func linesOf(certificates []*cx509.Certificate) (map[string]*trust.ProductCerts, error) {
	lines := map[string]*trust.ProductCerts{}
	for _, c := range certificates {
		name := c.Subject.CommonName
		var to func(*trust.ProductCerts) **cx509.Certificate
		line, ok := strings.CutPrefix(name, "ARK-")
		switch {
		case ok:
			to = func(p *trust.ProductCerts) **cx509.Certificate { return &p.Ark }
		case strings.HasPrefix(name, "SEV-VLEK-"):
			line, to = name[len("SEV-VLEK-"):], func(p *trust.ProductCerts) **cx509.Certificate { return &p.Asvk }
		case strings.HasPrefix(name, "SEV-"):
			line, to = name[len("SEV-"):], func(p *trust.ProductCerts) **cx509.Certificate { return &p.Ask }
		}
		if to == nil || !slices.Contains(productLines, line) {
			return nil, fmt.Errorf("the certificate of %.80q is not AMD's for one of: %s", name, strings.Join(productLines, ", "))
		}
		if lines[line] == nil {
			lines[line] = &trust.ProductCerts{}
		}
		if at := to(lines[line]); *at == nil {
			*at = c
		} else {
			return nil, fmt.Errorf("there are two certificates of %.80q", name)
		}
	}
	for line, p := range lines {
		if p.Ark == nil || p.Ask == nil && p.Asvk == nil {
			return nil, fmt.Errorf("for %s it needs AMD's root and a certificate that it signed: ARK-%s, and SEV-%s or SEV-VLEK-%s", line, line, line, line)
		}
		for _, c := range []*cx509.Certificate{p.Ark, p.Ask, p.Asvk} {
			if c != nil && c.CheckSignatureFrom(p.Ark) != nil {
				return nil, fmt.Errorf("ARK-%s did not sign the certificate of %.80q", line, c.Subject.CommonName)
			}
		}
	}
	return lines, nil
}

// verified is what is known of a report that was found genuine.
type verified struct {
	authority string
	line      string
	signer    abi.ReportSigner
	chip      []byte // nil: a VLEK is of no single chip
	provider  string // of a VLEK
	notAfter  time.Time
}

// verify checks signature, chain, and that the certificate is for this report.
func (p Params) verify(report *pb.Report, certificate *cx509.Certificate, now time.Time) (verified, error) {
	info, err := abi.ParseSignerInfo(report.GetSignerInfo())
	if err != nil || info.SigningKey != abi.VcekReportSigner && info.SigningKey != abi.VlekReportSigner {
		return verified{}, problem.New(problem.ReasonBadProof, "the report is signed by no key of the CPU's maker")
	}
	v := verified{signer: info.SigningKey}
	// The signature first: a stranger without any key gets no further. The cause may quote the evidence, so it stays inside.
	if err := verify.SnpProtoReportSignature(report, certificate); err != nil {
		q := problem.New(problem.ReasonBadProof, "the report's signature is not the certificate's key's")
		q.Err = err
		return verified{}, q
	}
	prefix := "SEV-"
	if v.signer == abi.VlekReportSigner {
		prefix = "SEV-VLEK-"
	}
	v.line = strings.TrimPrefix(certificate.Issuer.CommonName, prefix)
	err = fmt.Errorf("no root")
	for _, r := range p.roots[v.line] {
		o := &verify.Options{DisableCertFetching: true, Now: now, TrustedRoots: map[string][]*trust.AMDRootCerts{v.line: {r.certs}}}
		if err = check(report, certificate, v.signer, o); err == nil {
			v.authority, v.notAfter = r.authority, earliest(certificate, r.certs.ProductCerts, v.signer)
			break
		}
	}
	if err != nil {
		q := problem.New(problem.ReasonBadChain, "the certificate of the CPU's key does not lead to AMD's roots in the bundle, is not valid now, or is not for this CPU")
		q.Err = err
		return verified{}, q
	}
	extensions, err := kds.CertificateExtensions(certificate, v.signer)
	if err != nil {
		return verified{}, problem.New(problem.ReasonBadChain, "the certificate of the CPU's key lacks what AMD writes into it")
	}
	// The key is derived from chip and firmware levels (AMD 57230 §2), and the certificate says which. A report that names others was made by
	// firmware that lies, or the certificate is another one's.
	v.chip, v.provider = extensions.HWID, extensions.CspID
	if v.signer == abi.VcekReportSigner && !allZero(report.GetChipId()) && !bytes.Equal(v.chip, report.GetChipId()) {
		return verified{}, problem.New(problem.ReasonBadChain, "the certificate is another chip's than the report's")
	}
	if uint64(extensions.TCBVersion) != report.GetReportedTcb() {
		return verified{}, problem.New(problem.ReasonBadChain, "the certificate is for other firmware levels than the report's")
	}
	return v, nil
}

// A chip whose owner masks its ID reports zeros.
func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func earliest(leaf *cx509.Certificate, p *trust.ProductCerts, signer abi.ReportSigner) time.Time {
	between := p.Ask
	if signer == abi.VlekReportSigner {
		between = p.Asvk
	}
	end := leaf.NotAfter
	for _, c := range []*cx509.Certificate{between, p.Ark} {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

// claimsOf says what the report says. Every field is always there; all are texts, numbers in decimal and bytes in hexadecimal:
//
//	authority   the named authority of the bundle
//	product     the CPU's product line: Milan, Genoa
//	signer      VCEK (a chip's key) or VLEK (a cloud provider's)
//	provider    whose VLEK it is; "" for a VCEK
//	chip        the chip's ID by its certificate; "" for a VLEK
//	measurement SHA-384 of what was launched; family, image: by its owner's ID block, zeros without one
//	host_data   what the host passed at the launch
//	id_key, author_key   SHA-384 of the keys that signed the ID block
//	report      the VM's report ID, new with each launch
//	vmpl        the privilege level that asked, 0 to 3
//	guest_svn   by the owner's ID block
//	policy      {abi, smt, migration, single_socket}
//	tcb         firmware levels: {reported, committed, launch}, each {bootloader, tee, snp, microcode}
//	revocation  "not checked"
func claimsOf(r *pb.Report, v verified) map[string]any {
	policy, _ := abi.ParseSnpPolicy(r.GetPolicy()) // it was parsed before
	return map[string]any{
		"authority": v.authority, "product": v.line, "signer": v.signer.String(), "provider": v.provider, "chip": hex.EncodeToString(v.chip),
		"measurement": hex.EncodeToString(r.GetMeasurement()), "family": hex.EncodeToString(r.GetFamilyId()), "image": hex.EncodeToString(r.GetImageId()),
		"host_data": hex.EncodeToString(r.GetHostData()), "id_key": hex.EncodeToString(r.GetIdKeyDigest()), "author_key": hex.EncodeToString(r.GetAuthorKeyDigest()),
		"report": hex.EncodeToString(r.GetReportId()), "vmpl": number(r.GetVmpl()), "guest_svn": number(r.GetGuestSvn()),
		"policy": map[string]any{
			"abi": fmt.Sprintf("%d.%d", policy.ABIMajor, policy.ABIMinor), "smt": strconv.FormatBool(policy.SMT),
			"migration": strconv.FormatBool(policy.MigrateMA), "single_socket": strconv.FormatBool(policy.SingleSocket),
		},
		"tcb":        map[string]any{"reported": levels(r.GetReportedTcb()), "committed": levels(r.GetCommittedTcb()), "launch": levels(r.GetLaunchTcb())},
		"revocation": "not checked",
	}
}

func number[N uint8 | uint32](n N) string { return strconv.FormatUint(uint64(n), 10) }
