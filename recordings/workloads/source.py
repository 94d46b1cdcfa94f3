"""Prints a C program of many functions, the same each time, for a compiler to work on."""

print("#include <stdio.h>\n#include <string.h>\n")
for i in range(1400):
    print(f"""unsigned f{i}(unsigned x, const unsigned *t)
{{
    unsigned sum = x + {i * 17 % 251}u;
    for (unsigned k = 0; k < (x & 31u) + {i % 13 + 1}u; k++) {{
        sum = sum * {2 * i + 1}u + t[k & 63u];
        switch (sum & 7u) {{
        case 0: sum ^= x >> {i % 7 + 1}; break;
        case 3: sum += t[(sum >> 3) & 63u]; break;
        case 5: sum -= k * {i + 3}u; break;
        default: sum = (sum << 5) | (sum >> 27);
        }}
    }}
    return sum;
}}
""")
calls = "\n".join(f"    sum += f{i}(sum, t);" for i in range(1400))
print(f"""int main(void)
{{
    unsigned t[64], sum = 1;
    memset(t, 3, sizeof t);
{calls}
    printf("%u\\n", sum);
    return 0;
}}""")
