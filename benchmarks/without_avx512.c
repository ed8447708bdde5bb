/* Answers cpuid in the place of the processor, without AVX-512, VNNI and AMX: see without_avx512.py.
 *
 * Bits as in "Intel Architecture Instruction Set Extensions Programming Reference", CPUID leaves 7, 0x19, 0x24. */
#define _GNU_SOURCE
#include <signal.h>
#include <stddef.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

static struct sigaction previous;

static void answer(int signal, siginfo_t *info, void *context) {
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)registers[REG_RIP];
  (void)signal, (void)info;
  if (at[0] != 0x0f || at[1] != 0x0b) { /* not ours: let it happen again as it would have */
    sigaction(SIGILL, &previous, NULL);
    return;
  }
  unsigned leaf = registers[REG_RAX], sub = registers[REG_RCX], a = leaf, b, c = sub, d;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  if (leaf == 7 && sub == 0) {
    b &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31)); /* F DQ IFMA PF ER CD BW VL */
    c &= ~(BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14)); /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
    d &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* 4VNNIW 4FMAPS VP2INTERSECT AMX FP16 */
  } else if (leaf == 7 && sub == 1) {
    a &= ~(BIT(4) | BIT(5) | BIT(21) | BIT(23)); /* AVX_VNNI AVX512_BF16 AMX_FP16 AVX_IFMA */
    d = 0; /* AVX_VNNI_INT8 and what came after it */
  } else if (leaf == 0x24) {
    a = b = c = d = 0; /* AVX10 */
  }
  registers[REG_RAX] = a, registers[REG_RBX] = b, registers[REG_RCX] = c, registers[REG_RDX] = d;
  registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGILL, &action, &previous);
}
