package picture_test

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
	"github.com/bailment/bailment/internal/policy/policytest"
	"github.com/bailment/bailment/internal/reach"
	"github.com/bailment/bailment/internal/reach/picture"
)

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
	m := reach.New(policytest.Compile(t, policytest.Example(t, "estate")), reach.Names{})
	all, err := identity.ParseIDPattern("/ci/*")
	if err != nil {
		t.Fatal(err)
	}
	prod, err := reach.ParseTarget("db/prod/*")
	if err != nil {
		t.Fatal(err)
	}
	jobs := []identity.Pattern{all}
	o := reach.Options{Worst: reach.Poisoning}
	c, err := m.Cut(jobs, prod, o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.From(jobs, o)
	if err != nil {
		t.Fatal(err)
	}
	var ways [][]reach.Step
	things := map[reach.Thing]bool{}
	for _, x := range r.Reached {
		ways = append(ways, x.Way)
		for _, s := range x.Way {
			things[s.From], things[s.To] = true, true
		}
	}
	for _, s := range r.Hops {
		things[s.From], things[s.To] = true, true
	}
	data := picture.Draw("from /ci/*", ways, r.Hops, c)
	if again := picture.Draw("from /ci/*", ways, r.Hops, c); string(again) != string(data) {
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
	empty := readSVG(t, picture.Draw("", nil, nil, nil))
	if empty.boxes != 0 {
		t.Errorf("nothing has %d boxes", empty.boxes)
	}
}

// Whatever names say, it stays text, and whatever there is, the picture stays of a size to look at.
func TestPictureOfHostileNames(t *testing.T) {
	bad := reach.Thing{Kind: reach.KindSystem, Name: "</text><script>alert(1)</script>&\"'\x00\x1b\uFFFF\u202e" + strings.Repeat("x", 500)}
	ways := [][]reach.Step{{{From: reach.Thing{Kind: reach.KindJob, Name: "a<b"}, Hop: reach.Hop("<i>"), To: bad, Rule: "]]>", Conditions: []string{"if a < b && c > \"d\""}}}}
	got := readSVG(t, picture.Draw("<&>", ways, nil, nil))
	if got.boxes != 2 || got.paths != 1 || !slices.Contains(got.texts, "a<b") {
		t.Errorf("%+v", got)
	}
	for i := range 3000 {
		ways = append(ways, []reach.Step{{From: reach.Thing{Kind: reach.KindJob, Name: "a<b"}, To: reach.Thing{Kind: reach.KindSecret, Name: strings.Repeat("s", i+1)}, Hop: reach.Reads}})
	}
	got = readSVG(t, picture.Draw("many", ways, nil, nil))
	if got.boxes > reach.PictureColumns*reach.PictureRows || !strings.Contains(strings.Join(got.texts, "\n"), "more are not shown") {
		t.Errorf("%d boxes", got.boxes)
	}
}
