package reach

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bailment/bailment/internal/identity"
	"github.com/bailment/bailment/internal/policy"
	"github.com/bailment/bailment/internal/policy/policytest"
)

func example(t *testing.T) *policy.Program {
	t.Helper()
	return policytest.Compile(t, policytest.Example(t, "estate"))
}

// The example's minimum cut is known: its README says which two lines, and why no one is enough.
func TestExampleCut(t *testing.T) {
	p := example(t)
	jobs, prod := []identity.Pattern{pattern(t, "/ci/*")}, target(t, "db/prod/*")
	for _, to := range []string{"db/prod/*", "system:prod-db"} {
		c, err := New(p, Names{}).Cut(jobs, target(t, to), Options{Worst: Poisoning})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range c.Taken {
			got = append(got, x.Rule+": "+x.From+" "+string(x.Hop)+" "+x.To)
		}
		want := []string{"ci/registry-token: ci/registry-token deploys /workload/shop/*", "deployer-migrates: /workload/deployer reads db/prod/*"}
		if to == "system:prod-db" {
			want = []string{"db/prod/*: db/prod/* unlocks prod-db"} // all of it is behind one line
		}
		if !slices.Equal(got, want) || !c.Smallest || c.Cost != len(want) {
			t.Errorf("%s: %q at %d, not %q", to, got, c.Cost, want)
		}
	}
	a, err := New(p, Names{}).To(prod, Options{Worst: Poisoning, Costs: Costs{Workload: 5, Node: 5, Person: 5}})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Attacks) == 0 || a.Attacks[0].Cost != 1 || a.Attacks[0].Who[0].Kind != KindJob || a.Attacks[0].Hops != 3 {
		t.Errorf("the cheapest is %+v", a.Attacks[0])
	}
	for _, x := range a.Attacks {
		if len(x.Who) > 1 && (len(x.Who) != 2 || x.Who[0].Name != "/human/alice" || x.Who[1].Name != "/human/bob") {
			t.Errorf("together: %+v", x.Who)
		}
	}
	broken, err := CheckLimits(p, Names{}, []Limit{{Name: "jobs", From: jobs, To: []Target{prod}}, {Name: "backups", From: jobs, To: []Target{target(t, "system:backups")}, Worst: Poisoning}})
	if err != nil || len(broken) != 1 || broken[0].Total != 2 || broken[0].Grade != Plain {
		t.Errorf("broken: %+v, %v", broken, err)
	}
}

type svg struct {
	boxes, paths, cuts int
	texts, titles      []string
	bounds             [][4]string
}

// readSVG reads a picture strictly, and what is in it.
func readSVG(t *testing.T, data []byte) svg {
	t.Helper()
	var out svg
	d := xml.NewDecoder(strings.NewReader(string(data)))
	in := ""
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, data)
		}
		switch e := tok.(type) {
		case xml.StartElement:
			in = e.Name.Local
			attr := map[string]string{}
			for _, a := range e.Attr {
				attr[a.Name.Local] = a.Value
				if strings.Contains(a.Name.Local, "href") || strings.HasPrefix(a.Name.Local, "on") {
					t.Errorf("the picture has %s", a.Name.Local)
				}
			}
			switch {
			case in == "rect" && attr["class"] != "page":
				out.boxes++
				out.bounds = append(out.bounds, [4]string{attr["x"], attr["y"], attr["width"], attr["height"]})
			case in == "path" && attr["marker-end"] != "":
				out.paths++
				if strings.Contains(attr["class"], "cut") {
					out.cuts++
				}
			case in == "script" || in == "image" || in == "foreignObject":
				t.Errorf("the picture has a %s", in)
			}
		case xml.CharData:
			switch in {
			case "text":
				out.texts = append(out.texts, string(e))
			case "title":
				out.titles = append(out.titles, string(e))
			}
		case xml.EndElement:
			in = ""
		}
	}
}

// The picture of the example: everything on the ways is in it once, and no two boxes are at one place.
func TestPicture(t *testing.T) {
	p := example(t)
	jobs, prod := []identity.Pattern{pattern(t, "/ci/*")}, target(t, "db/prod/*")
	o := Options{Worst: Poisoning}
	c, err := New(p, Names{}).Cut(jobs, prod, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(p, Names{}).From(jobs, o)
	if err != nil {
		t.Fatal(err)
	}
	var ways [][]Step
	things := map[Thing]bool{}
	for _, x := range r.Reached {
		ways = append(ways, x.Way)
		for _, s := range x.Way {
			things[s.From], things[s.To] = true, true
		}
	}
	for _, s := range r.Hops {
		things[s.From], things[s.To] = true, true
	}
	data := Picture("from /ci/*", ways, r.Hops, c)
	if again := Picture("from /ci/*", ways, r.Hops, c); string(again) != string(data) {
		t.Error("two pictures of the same differ")
	}
	if dir := os.Getenv("BAILMENT_PICTURES"); dir != "" { // to be looked at
		if err := os.WriteFile(filepath.Join(dir, "estate.svg"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := readSVG(t, data)
	if got.boxes != len(things) || got.paths != len(r.Hops) || got.cuts != 3 {
		t.Errorf("%d boxes for %d things, %d lines, %d of them cut", got.boxes, len(things), got.paths, got.cuts)
	}
	for i, a := range got.bounds {
		if slices.Contains(got.bounds[:i], a) {
			t.Errorf("two boxes at %v", a)
		}
	}
	for thing := range things {
		if !slices.Contains(got.titles, thing.Kind+" "+thing.Name) {
			t.Errorf("no title for %v", thing)
		}
	}
	empty := readSVG(t, Picture("", nil, nil, nil))
	if empty.boxes != 0 {
		t.Errorf("nothing has %d boxes", empty.boxes)
	}
}

// Whatever names say, it stays text, and whatever there is, the picture stays of a size to look at.
func TestPictureOfHostileNames(t *testing.T) {
	bad := Thing{KindSystem, "</text><script>alert(1)</script>&\"'\x00\x1b\uFFFF\u202e" + strings.Repeat("x", 500)}
	ways := [][]Step{{{From: Thing{KindJob, "a<b"}, Hop: Hop("<i>"), To: bad, Rule: "]]>", Conditions: []string{"if a < b && c > \"d\""}}}}
	got := readSVG(t, Picture("<&>", ways, nil, nil))
	if got.boxes != 2 || got.paths != 1 || !slices.Contains(got.texts, "a<b") {
		t.Errorf("%+v", got)
	}
	for i := range 3000 {
		ways = append(ways, []Step{{From: Thing{KindJob, "a<b"}, To: Thing{KindSecret, strings.Repeat("s", i+1)}, Hop: Reads}})
	}
	got = readSVG(t, Picture("many", ways, nil, nil))
	if got.boxes > pictureColumns*pictureRows || !strings.Contains(strings.Join(got.texts, "\n"), "more are not shown") {
		t.Errorf("%d boxes", got.boxes)
	}
}
