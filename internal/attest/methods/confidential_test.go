package methods_test

import (
	cx509 "crypto/x509"
	"testing"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/sevsnp"
	"github.com/bailment/bailment/internal/attest/sevsnp/snptest"
	"github.com/bailment/bailment/internal/attest/sshhost"
	"github.com/bailment/bailment/internal/attest/tdx"
	"github.com/bailment/bailment/internal/attest/tdx/tdxtest"
	"github.com/bailment/bailment/internal/authority"
)

// machines are the fixtures of methods whose evidence is by a key of the machine's own.
func machines(t *testing.T) map[string]fixture {
	return map[string]fixture{sshhost.Name: hostKey(t), sevsnp.Name: confidentialAMD(t), tdx.Name: confidentialIntel(t)}
}

// inSoftware is the params of a fixture whose material would need hardware: this attester stands for the one made from it.
type inSoftware struct {
	params   any
	attester attest.Attester
}

// A CPU in software; the kernel's directory is an empty one, which is enough to be opened.
func confidentialAMD(t *testing.T) fixture {
	chip := snptest.New(t, now, snptest.Maker{})
	params, err := sevsnp.NewParams([]authority.Authority{{Name: "amd", Certificates: chip.Roots}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := sevsnp.NewAttester(chip, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fixture{
		attest.Material{sevsnp.NeedTSM: []byte(t.TempDir()), sevsnp.NeedCertificate: chip.Certificate.Raw},
		inSoftware{params, a},
	}
}

func confidentialIntel(t *testing.T) fixture {
	platform := tdxtest.New(t, now, tdxtest.Maker{})
	params, err := tdx.NewParams([]authority.Authority{{Name: "intel", Certificates: []*cx509.Certificate{platform.Root}}})
	if err != nil {
		t.Fatal(err)
	}
	return fixture{attest.Material{tdx.NeedTSM: []byte(t.TempDir())}, inSoftware{params, tdx.NewAttester(platform)}}
}
