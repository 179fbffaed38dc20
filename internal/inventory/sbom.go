package inventory

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Kinds of the bills of materials, as they are attached.
const (
	SPDXKind      = "application/spdx+json"
	CycloneDXKind = "application/vnd.cyclonedx+json"
)

// Subject is the image that a bill of materials is of.
type Subject struct {
	Name, Version string
	Digest        string    // sha256:…, of the image's content
	Created       time.Time // of the image: the same image gives the same bytes
	Tool          string    // version of rebake
}

// PURL is a package's name in the language of package-url/purl-spec.
func (inv *Inventory) PURL(p Package) string {
	os := inv.OS["ID"]
	kind := map[string]string{"dpkg": "deb", "rpm": "rpm", "apk": "apk"}[p.Manager]
	space := os
	if space == "" {
		space = map[string]string{"deb": "debian", "rpm": "fedora", "apk": "alpine"}[kind]
	}
	q := url.Values{}
	version := p.Version
	if p.Arch != "" {
		q.Set("arch", p.Arch)
	}
	if v := inv.OS["VERSION_ID"]; v != "" && os != "" {
		q.Set("distro", os+"-"+v)
	}
	if epoch, rest, ok := strings.Cut(version, ":"); ok && kind == "rpm" {
		version = rest
		q.Set("epoch", epoch)
	}
	s := "pkg:" + kind + "/" + escape(strings.ToLower(space)) + "/" + escape(p.Name)
	if version != "" {
		s += "@" + escape(version)
	}
	if e := strings.ReplaceAll(q.Encode(), "+", "%20"); e != "" {
		s += "?" + e
	}
	return s
}

// escape is the percent-encoding of a purl: all but letters, digits and .-_~:
func escape(s string) string {
	return strings.NewReplacer("+", "%20", "%3A", ":").Replace(url.QueryEscape(s))
}

func (s Subject) check() (hash string, err error) {
	hash, ok := strings.CutPrefix(s.Digest, "sha256:")
	if !ok || !isHex(hash, 64) || s.Name == "" || s.Version == "" {
		return "", fmt.Errorf("make a bill of materials: %s:%s with digest %q is no image", s.Name, s.Version, s.Digest)
	}
	return hash, nil
}

type object = map[string]any // encoding/json sorts its keys

// SPDX is the bill of materials as SPDX 2.3 JSON.
func SPDX(inv *Inventory, s Subject) ([]byte, error) {
	hash, err := s.check()
	if err != nil {
		return nil, err
	}
	const image = "SPDXRef-image"
	packages := []object{{
		"SPDXID": image, "name": s.Name, "versionInfo": s.Version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
		"primaryPackagePurpose": "OPERATING_SYSTEM", "checksums": []object{{"algorithm": "SHA256", "checksumValue": hash}},
	}}
	relations := []object{{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": image}}
	for _, p := range inv.Packages {
		purl := inv.PURL(p)
		sum := sha256.Sum256([]byte(purl))
		id := "SPDXRef-package-" + hex.EncodeToString(sum[:10])
		o := object{
			"SPDXID": id, "name": p.Name, "versionInfo": p.Version, "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
			"licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION", "supplier": "NOASSERTION",
			"externalRefs": []object{{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}},
		}
		if p.Source != "" {
			o["sourceInfo"] = "built from the source package " + p.Source
		}
		packages = append(packages, o)
		relations = append(relations, object{"spdxElementId": image, "relationshipType": "CONTAINS", "relatedSpdxElement": id})
	}
	return json.Marshal(object{
		"spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": s.Name + "-" + s.Version,
		"documentNamespace": "https://rebake.invalid/spdx/" + url.PathEscape(s.Name) + "/" + url.PathEscape(s.Version) + "/" + hash,
		"creationInfo":      object{"created": s.Created.UTC().Format(time.RFC3339), "creators": []string{"Tool: rebake-" + s.Tool}},
		"packages":          packages, "relationships": relations,
	})
}

// CycloneDX is the bill of materials as CycloneDX 1.6 JSON.
func CycloneDX(inv *Inventory, s Subject) ([]byte, error) {
	hash, err := s.check()
	if err != nil {
		return nil, err
	}
	components, refs := []object{}, []string{}
	if os := inv.OS["ID"]; os != "" {
		o := object{"type": "operating-system", "bom-ref": "os", "name": os}
		if v := inv.OS["VERSION_ID"]; v != "" {
			o["version"] = v
		}
		components, refs = append(components, o), append(refs, "os")
	}
	for _, p := range inv.Packages {
		purl := inv.PURL(p)
		o := object{"type": "library", "bom-ref": purl, "name": p.Name, "version": p.Version, "purl": purl}
		if p.Source != "" {
			o["properties"] = []object{{"name": "rebake:source", "value": p.Source}}
		}
		components, refs = append(components, o), append(refs, purl)
	}
	return json.Marshal(object{
		"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1,
		"serialNumber": "urn:uuid:" + uuid.NewSHA1(uuid.NameSpaceURL, []byte(s.Name+":"+s.Version+"@"+s.Digest)).String(),
		"metadata": object{
			"timestamp": s.Created.UTC().Format(time.RFC3339),
			"tools":     object{"components": []object{{"type": "application", "name": "rebake", "version": s.Tool}}},
			"component": object{"type": "operating-system", "bom-ref": "image", "name": s.Name, "version": s.Version, "hashes": []object{{"alg": "SHA-256", "content": hash}}},
		},
		"components":   components,
		"dependencies": []object{{"ref": "image", "dependsOn": refs}},
	})
}
