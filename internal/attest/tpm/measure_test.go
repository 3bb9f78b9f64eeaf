package tpm

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/bailment/bailment/internal/attest"
	"github.com/bailment/bailment/internal/attest/tpm/tpmtest"
	"github.com/bailment/bailment/internal/authority"
	"github.com/bailment/bailment/internal/problem"
)

// What a machine says of itself, put into an authority, is what that machine is known by: with an event log and without one, and for
// any PCRs. After it was extended, it is known no more.
func TestMeasure(t *testing.T) {
	s := tpmtest.New(t, 0)
	log := bootTPM(t, s, typical("kernel 1", nil))
	for name, c := range map[string]struct {
		log    []byte
		pcrs   []int
		values []int // PCRs that are taken by their values
		events int
	}{
		"by the log":       {log, nil, []int{0, 1, 3, 6, 7, 14}, 6},
		"some, by the log": {log, []int{4, 7}, []int{7}, 3},
		"without a log":    {nil, []int{4, 8, 16}, []int{4, 8, 16}, 0},
	} {
		m := attest.Material{}
		if c.log != nil {
			m[NeedEventLog] = c.log
		}
		a := attesterOf(t, s, m)
		one, err := a.Measure(context.Background(), c.pcrs)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		set := one.References[0]
		if len(one.References) != 1 || len(set.PCRs) != len(c.values) || len(set.Events) != c.events {
			t.Errorf("%s: %d PCRs and %d events: %v", name, len(set.PCRs), len(set.Events), set)
		}
		for _, pcr := range c.values {
			if len(set.PCRs[pcr]) != 1 {
				t.Errorf("%s: PCR %d is missing", name, pcr)
			}
		}
		if len(one.Certificates) != 1 || !bytes.Equal(one.Certificates[0].RawIssuer, s.Issuing.RawSubject) {
			t.Errorf("%s: the certificate is missing", name)
		}
		one.Name, one.Certificates = "measured", nil
		one.References[0].Name, one.References[0].Version = "web", "1"
		res, err := Verify(goes(t, a, paramsOf(t, one), binding()).input())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if boot := res.Claims["boot"].(map[string]any); boot["reference"] != "known" || res.Findings != nil || res.Claims["vouched"] != "listed" {
			t.Errorf("%s: %v", name, boot)
		}
	}
	a := attesterOf(t, s, nil)
	one, err := a.Measure(context.Background(), []int{16})
	if err != nil {
		t.Fatal(err)
	}
	one.Name = "measured"
	s.Extend(16, sum("tampered"))
	res, err := Verify(goes(t, a, paramsOf(t, authority.Authority{Name: "m", Method: Name, EndorsementKeys: one.EndorsementKeys, PCRs: one.PCRs, References: one.References}), binding()).input())
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Findings) != 1 || res.Claims["boot"].(map[string]any)["reference"] != "bad" {
		t.Errorf("extended: %v", res.Findings)
	}

	for _, pcrs := range [][]int{{-1}, {24}, {2, 1}, {1, 1}} {
		if _, err := a.Measure(context.Background(), pcrs); !problem.Is(err, problem.ReasonInvalid) {
			t.Errorf("PCRs %v: %v", pcrs, err)
		}
	}
	withLog := attesterOf(t, s, attest.Material{NeedEventLog: log})
	s.Extend(4, sum("tampered"))
	if _, err := withLog.Measure(context.Background(), nil); !problem.Is(err, problem.ReasonEventLog) {
		t.Errorf("a log that does not replay: %v", err)
	}
	if err := os.Remove(string(log)); err != nil {
		t.Fatal(err)
	}
	if _, err := withLog.Measure(context.Background(), nil); !problem.Is(err, problem.ReasonInvalid) {
		t.Errorf("a log that is gone: %v", err)
	}
	if n := s.Loaded(); n != 0 {
		t.Errorf("%d objects or sessions were left in the TPM", n)
	}
}

// What a process left in a software TPM that was killed at work is in nobody's way.
func TestLeftovers(t *testing.T) {
	s := tpmtest.New(t, 0)
	s.Do(func(t transport.TPM) error {
		for range 3 { // all the room that there is
			if _, err := (tpm2.CreatePrimary{
				PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate),
			}).Execute(t); err != nil {
				return err
			}
		}
		return nil
	})
	if n := s.Loaded(); n != 3 {
		t.Fatalf("%d objects are loaded", n)
	}
	a := attesterOf(t, s, nil)
	if _, blob, err := a.NewKey(context.Background()); err != nil {
		t.Error(err)
	} else if _, err := a.LoadKey(context.Background(), blob); err != nil {
		t.Error(err)
	}
	goes(t, a, paramsOf(t, maker(s, nil)), binding())
	if n := s.Loaded(); n != 0 {
		t.Errorf("%d objects or sessions are left", n)
	}
}
