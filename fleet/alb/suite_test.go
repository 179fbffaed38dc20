package alb_test

import (
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/rebake/rebake/fleet"
	"github.com/rebake/rebake/fleet/alb"
	"github.com/rebake/rebake/internal/template"
	"github.com/rebake/rebake/test/awsfake"
	"github.com/rebake/rebake/test/awsfleet"
	"github.com/rebake/rebake/test/conformance"
)

// guestPort is where the instances of the tests serve, each on an address of its own.
const guestPort = 18080

// backends serve for the instances of a cloud.
type backends struct {
	mu  sync.Mutex
	set map[string]func(int) // by instance
}

func (b *backends) of(i awsfake.Instance) (addr string, stop func(), err error) {
	l, err := net.Listen("tcp", net.JoinHostPort(i.IP, strconv.Itoa(guestPort)))
	if err != nil {
		return "", nil, err
	}
	stop, set := conformance.HTTPServe(l)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set[i.ID] = set
	return i.IP, stop, nil
}

func (b *backends) status(id string) func(int) {
	return func(n int) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.set[id](n)
	}
}

func TestRouter(t *testing.T) {
	conformance.Router(t, func(t *testing.T) conformance.RouterWorld {
		cloud := awsfake.Start(t)
		b := &backends{set: map[string]func(int){}}
		cloud.Set(func() { cloud.Backend = b.of })
		w := awsfleet.New(t)
		ami := w.AMI(t, w.Image(t, "1"))
		hc := health
		hc.Port = guestPort
		open := func(t *testing.T) fleet.Router {
			r, err := alb.New(alb.Config{Listener: w.Listener, Priority: 10, Delay: template.Duration(2000 * time.Second)}, "suite", hc, alb.Options{Poll: 2 * ms})
			ok(t, err)
			return r
		}
		to, err := url.Parse(cloud.ListenerURL(w.Listener))
		ok(t, err)
		ids := map[string]string{} // by address
		return conformance.RouterWorld{
			Router: open(t), Again: open, Direct: true, Patience: 30 * time.Second,
			Send: conformance.HTTPSend(to.Host),
			Backend: func(t *testing.T) (string, func(int)) {
				m := machine(t, w, ami, guestPort)
				ids[m.Addr] = m.ID
				return m.Addr, b.status(m.ID)
			},
			Member: func(_ *testing.T, _, addr string) fleet.Member { return fleet.Member{ID: ids[addr], Addr: addr} },
		}
	})
}

func TestRule(t *testing.T) {
	awsfake.Start(t)
	ruleIsMade(t)
	ruleIsAdopted(t)
}

// run starts an instance.
func run(t testing.TB, w *awsfleet.World, ami string) string {
	t.Helper()
	out, err := w.EC2.RunInstances(t.Context(), &ec2.RunInstancesInput{ImageId: &ami, MinCount: aws.Int32(1), MaxCount: aws.Int32(1), InstanceType: types.InstanceTypeT3Small, SubnetId: &w.Subnets[0]})
	ok(t, err)
	return aws.ToString(out.Instances[0].InstanceId)
}
